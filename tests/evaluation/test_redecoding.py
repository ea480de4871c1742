"""Masks decoded again from the codes of results."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from tiny_results import RESULTS, SIZE, predicted_mask, write_results

from himtok_plugin.evaluation.evaluate import evaluate_results
from himtok_plugin.evaluation.protocols import resize_square
from himtok_plugin.evaluation.redecoding import Redecoder
from himtok_plugin.masks import from_square, to_rle


def test_masks_are_decoded_again_from_their_codes(tmp_path):
    tokenizer = tiny_model(seed=1)
    row = {**RESULTS[0], "masks": [{**predicted_mask(0), "codes": [3, 1, 2]}]}
    with torch.no_grad():
        square = tokenizer.decode(torch.tensor([[3, 1, 2]]))[0].numpy()
    for resize in ("nearest", "bilinear"):
        (made,) = Redecoder(tokenizer, resize, 0.4)(row)["masks"]
        assert made["counts"] == to_rle(resize_square(square, SIZE, 0.4, resize))["counts"] and made["score"] == 0.5
    assert np.array_equal(resize_square(square, SIZE, 0.4, "bilinear"), from_square(square, SIZE, 0.4))
    card = evaluate_results(write_results(tmp_path / "out.jsonl", row), redecoder=Redecoder(tokenizer, "nearest")).run
    assert (card.resize, card.mask_decoding, card.refiner) == ("nearest", "hard, decoded again from the codes", "none")
    for codes in (None, [], [12], [0] * 5, ["1"]):
        with pytest.raises(ValueError, match=r"masks\[0\].codes: got .* expected 1 to 4 integers below 12"):
            Redecoder(tokenizer)({**row, "masks": [{**predicted_mask(0), "codes": codes}]})
