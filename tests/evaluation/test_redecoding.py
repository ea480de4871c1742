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
        (made,) = Redecoder(tokenizer, resize, 0.4)([row])[0]["masks"]
        assert made["counts"] == to_rle(resize_square(square, SIZE, 0.4, resize))["counts"] and made["score"] == 0.5
    assert np.array_equal(resize_square(square, SIZE, 0.4, "bilinear"), from_square(square, SIZE, 0.4))
    card = evaluate_results(write_results(tmp_path / "out.jsonl", row), redecoder=Redecoder(tokenizer, "nearest")).run
    assert (card.resize, card.mask_decoding, card.refiner) == ("nearest", "hard, decoded again from the codes", "none")
    for codes in (None, [], [12], [0] * 5, ["1"]):
        with pytest.raises(ValueError, match=r"masks\[0\].codes: got .* expected 1 to 4 integers below 12"):
            Redecoder(tokenizer)([{**row, "masks": [{**predicted_mask(0), "codes": codes}]}])


def test_masks_of_many_results_are_decoded_together_as_each_alone(tmp_path):
    """Masks of different lengths, and results without masks between them, stay in order."""
    tokenizer = tiny_model(seed=1)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        masks = [{**predicted_mask(0), "codes": rng.integers(0, 12, rng.integers(1, 5)).tolist()} for _ in range(i % 4)]
        rows.append({**RESULTS[0], "row": i + 1, "masks": masks})
    redecoder, calls, decode = Redecoder(tokenizer), [], tokenizer.decode
    tokenizer.decode = lambda codes: calls.append(len(codes)) or decode(codes)
    together = redecoder(rows)
    assert sum(calls) == 60 and len(calls) == 4
    assert together == [redecoder([row])[0] for row in rows]
    calls.clear()
    evaluate_results(write_results(tmp_path / "out.jsonl", *rows), redecoder=redecoder, boundary=False)
    assert len(calls) == 4


def test_codes_that_do_not_fit_are_named_by_their_row(tmp_path):
    row = {**RESULTS[0], "masks": [{**predicted_mask(0), "codes": [99]}]}
    with pytest.raises(ValueError, match=r"out.jsonl: row 2: masks\[0\].codes: got \[99\]"):
        evaluate_results(
            write_results(tmp_path / "out.jsonl", RESULTS[2], row), redecoder=Redecoder(tiny_model(seed=1))
        )
