"""code_search.py with random weights, for which the nearest codes are rarely the best."""

from itertools import pairwise

import pytest
import torch
from tiny_models import random_squares, tiny_model

from himtok_plugin.hierarchical_loss import bce_per_mask, dice_per_mask
from himtok_plugin.mask_tokenizer.code_search import DECODED_AT_ONCE


def distance(model, codes, squares):
    decoded = model.decode(codes)
    return bce_per_mask(decoded, squares) + dice_per_mask(decoded, squares)


def test_masks_come_closer_with_every_sweep_and_none_goes_farther(model):
    squares = random_squares(6)
    distances = [distance(model, model.encode(squares), squares)]
    distances += [distance(model, model.encode(squares, 5, sweeps), squares) for sweeps in (1, 2)]
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


def test_codes_do_not_depend_on_the_rest_of_the_batch(model):
    squares = random_squares(DECODED_AT_ONCE // 3 + 1)  # three candidates each: more than are decoded at once
    alone = torch.cat([model.encode(square[None], 3) for square in squares])
    assert torch.equal(model.encode(squares, 3), alone)


def test_encode_searches_if_there_are_several_candidates(model):
    squares = random_squares(4)
    assert torch.equal(model.encode(squares, candidates=4, sweeps=2), model.encode(squares, 4, 2))
    assert torch.equal(model.encode(squares), model.quantize.nearest_codes(model.encode_to_latents(squares)))
    assert torch.equal(model.encode(squares), model.encode(squares, 1))
    assert not model.encode(squares, candidates=4).requires_grad


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"candidates": 0}, "candidates=0: expected 1 to 12"),
        ({"candidates": 13}, "candidates=13: expected 1 to 12"),
        ({"candidates": 2, "sweeps": 0}, "sweeps=0: expected at least 1"),
    ],
)
def test_numbers_out_of_range_are_named(model, options, error):
    with pytest.raises(ValueError, match=error):
        model.encode(random_squares(1), **options)
