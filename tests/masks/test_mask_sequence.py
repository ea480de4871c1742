"""mask_sequence.py: the masks of one image."""

import numpy as np
import pytest
from PIL import Image

from himtok_plugin.masks import Masks, to_rle, to_square


def test_masks_is_an_immutable_sequence_of_one_size(blob, tmp_path):
    Image.fromarray(blob).save(tmp_path / "m.png")
    masks = Masks.load(["m.png", to_rle(~blob)], size=(20, 30), root=tmp_path)
    assert len(masks) == 2 and masks.size == (20, 30)
    assert np.array_equal(masks[0], blob) and np.array_equal(masks[-1], ~blob) and len(masks[1:]) == 1
    assert masks.union().all() and masks.boxes().tolist() == [[5, 4, 21, 12], [0, 0, 30, 20]]
    assert masks.squares(8).shape == (2, 8, 8) and masks.squares(8).dtype == np.float32
    assert np.array_equal(Masks(masks.to_rle())[1], ~blob)
    with pytest.raises(ValueError, match="read-only"):
        masks[0][0, 0] = True
    blob[:] = False
    assert masks[0].any()


def test_masks_may_be_empty_where_the_size_is_known():
    masks = Masks([], size=(4, 5))
    assert masks.squares(8).shape == (0, 8, 8) and masks.boxes().shape == (0, 4) and not masks.union().any()
    with pytest.raises(ValueError, match="size"):
        Masks([])


def test_masks_names_the_index_of_a_bad_one(blob):
    with pytest.raises(ValueError, match=r"masks\[1\]: .*\(3, 3\)"):
        Masks([blob, np.ones((3, 3), dtype=bool)])


def test_masks_from_squares(blob):
    masks = Masks.from_squares(np.stack([to_square(blob, 64)] * 2), blob.shape)
    assert len(masks) == 2 and np.mean(masks[1] == blob) > 0.98
