"""squares.py: the stretch to the square and back, and which grey levels it keeps."""

import numpy as np
import pytest
import torch
from PIL import Image

from himtok_plugin.masks import Masks, from_square, load_mask, to_square


def test_to_square_is_pils_bicubic_stretch_of_8_bit_grey(blob):
    grey = blob.astype(np.uint8) * 255
    expected = np.asarray(Image.fromarray(grey).resize((16, 16), Image.BICUBIC)) / np.float32(255)
    for source in (blob, grey, grey // 255, Image.fromarray(grey)):
        square = to_square(source, 16)
        assert square.dtype == np.float32 and square.shape == (16, 16)
        assert np.array_equal(square, expected)
    assert 0 < np.count_nonzero((square > 0) & (square < 1))


def test_to_square_keeps_grey():
    grey = np.full((30, 30), 51, dtype=np.uint8)
    grey[:10], grey[20:] = 0, 255
    expected = np.asarray(Image.fromarray(grey).resize((8, 8), Image.BICUBIC)) / np.float32(255)
    for source in (grey, Image.fromarray(grey)):
        assert np.array_equal(to_square(source, 8), expected)
    assert to_square(grey, 30)[15, 15] == np.float32(0.2)


@pytest.mark.parametrize("values", [(0, 1), (0, 2), (0, 38), (0, 200), (0, 255), (100, 200), (100, 101), (2, 2)])
def test_two_values_are_the_same_mask_to_load_mask_and_to_square(blob, values):
    two = np.where(blob, *np.array(values[::-1], dtype=np.uint8))
    if values == (100, 101):
        with pytest.raises(ValueError, match="several labels"):
            to_square(two, 16)
        return
    for source in (two, Image.fromarray(two), two.astype(np.int64)):
        assert np.array_equal(to_square(source, 16), to_square(load_mask(two), 16))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_a_tokenizer_decodes_is_taken_as_it_comes(blob, dtype):
    square = to_square(blob, 16)
    tensor = torch.from_numpy(square).to(getattr(torch, dtype)).requires_grad_()
    near = np.abs(square - 0.5) < 0.01  # where rounding may decide
    assert near.mean() < 0.02
    assert np.mean(from_square(tensor, blob.shape) == from_square(square, blob.shape)) > 0.98
    assert np.array_equal(load_mask(tensor)[~near], (square >= 0.5)[~near])
    masks = Masks.from_squares(tensor[None], blob.shape)
    assert np.array_equal(masks[0], from_square(tensor, blob.shape))


def test_from_square_can_copy_the_nearest_pixels():
    prob = np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    nearest = from_square(prob, (4, 4), resample="nearest")
    assert np.array_equal(nearest, np.array([[0, 0, 1, 1]] * 2 + [[0] * 4] * 2, bool))  # above 0.5, not at it
    with pytest.raises(ValueError, match="resample is 'cubic': expected one of bilinear, nearest"):
        from_square(prob, (4, 4), resample="cubic")


def test_from_square_is_bilinear_then_threshold():
    prob = np.array([[0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    assert from_square(prob, (1, 8)).tolist() == [[False] * 4 + [True] * 4]
    assert from_square(prob, (1, 8), threshold=0.9).sum() < 4
    for bad in (prob * 2, prob * np.nan, prob[0]):
        with pytest.raises(ValueError, match="prob"):
            from_square(bad, (1, 8))


def test_square_and_back_keeps_the_mask(blob):
    assert np.mean(from_square(to_square(blob), blob.shape) == blob) > 0.99
