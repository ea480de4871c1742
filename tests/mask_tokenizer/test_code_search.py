"""code_search.py with random weights, for which the nearest codes are rarely the best."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny_models import random_squares, tiny_model

from himtok_plugin.data.generated.object_masks import generate_object_masks
from himtok_plugin.data.generated.scenes import generate_scenes
from himtok_plugin.hierarchical_loss import bce_per_mask, dice_per_mask
from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.mask_tokenizer.code_search import DECODED_BY_THREAD
from himtok_plugin.masks import to_square


def distance(model, codes, squares):
    decoded = model.decode(codes)
    return bce_per_mask(decoded, squares) + dice_per_mask(decoded, squares)


def test_masks_come_closer_the_more_are_decoded_and_none_goes_farther(model):
    squares = random_squares(6)
    distances = [distance(model, model.encode(squares), squares)]
    distances += [distance(model, model.encode(squares, 5, decodes), squares) for decodes in (1, 20, 200)]
    for before, after in pairwise(distances):
        assert (after <= before + 1e-6).all()
    assert (distances[1] < distances[0]).any()


def test_with_one_token_and_all_codes_as_candidates_the_best_code_is_found():
    model = tiny_model(num_mask_tokens=1)
    squares = random_squares(3)
    size = model.config.codebook_size
    every = torch.stack([distance(model, torch.full((3, 1), code), squares) for code in range(size)])
    assert torch.equal(model.encode(squares, size)[:, 0], every.argmin(dim=0))


def test_only_the_nearest_codes_are_tried(model):
    squares = random_squares(4)
    near = model.quantize.nearest_codes(model.encode_to_latents(squares), 2)
    assert (model.encode(squares, 2)[..., None] == near).any(dim=-1).all()


# BCE + Dice of two masks of generated scenes and of two generated objects, with codes of a search that decodes each
# of 8 candidates at every position, twice (coordinate descent).
DISTANCES_OF_SWEEPS = torch.tensor([0.0749, 0.0588, 0.2027, 0.5504])


def test_masks_of_the_shipped_model_are_as_close_as_if_every_candidate_had_been_decoded():
    model = MaskTokenizer.from_pretrained("demo").eval()
    scenes = [scene.masks[0] for scene in generate_scenes(9, seed=5) if scene.masks][:2]
    masks = [*scenes, *generate_object_masks(2, seed=5)]
    squares = torch.from_numpy(np.stack([to_square(mask, model.config.image_size) for mask in masks]))
    with torch.no_grad():
        found = distance(model, model.encode(squares, 8), squares)
    assert found.mean() <= DISTANCES_OF_SWEEPS.mean()
    assert (found <= DISTANCES_OF_SWEEPS + 0.01).all()  # some end in another local optimum


def test_codes_are_found_where_gradients_are_off(model):
    squares = random_squares(2)
    expected = model.encode(squares, 4)
    with torch.inference_mode():
        assert torch.equal(model.encode(squares.clone(), 4), expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_search_ends_when_no_change_of_a_code_brings_the_mask_closer(model):
    squares = random_squares(3)
    codes = model.encode(squares, 3, 100_000)
    near = model.quantize.nearest_codes(model.encode_to_latents(squares), 3)
    best = distance(model, codes, squares)
    for position in range(codes.shape[1]):
        for i in range(3):
            changed = codes.clone()
            changed[:, position] = near[:, position, i]
            assert (distance(model, changed, squares) >= best - 1e-6).all()


def test_codes_do_not_depend_on_the_rest_of_the_batch(model):
    squares = random_squares(DECODED_BY_THREAD + 1)
    alone = torch.cat([model.encode(square[None], 3) for square in squares])
    assert torch.equal(model.encode(squares, 3), alone)


def test_encode_searches_if_there_are_several_candidates(model):
    squares = random_squares(4)
    assert torch.equal(model.encode(squares, candidates=4, decodes=9), model.encode(squares, 4, 9))
    assert torch.equal(model.encode(squares), model.quantize.nearest_codes(model.encode_to_latents(squares)))
    assert torch.equal(model.encode(squares), model.encode(squares, 1))
    assert not model.encode(squares, candidates=4).requires_grad


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"candidates": 0}, "candidates=0: expected 1 to 12"),
        ({"candidates": 13}, "candidates=13: expected 1 to 12"),
        ({"candidates": 2, "decodes": 0}, "decodes=0: expected at least 1"),
    ],
)
def test_numbers_out_of_range_are_named(model, options, error):
    with pytest.raises(ValueError, match=error):
        model.encode(random_squares(1), **options)
