"""Malformed answers: each kind has a defined outcome, and no text crashes a prediction."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_mask_text import SCRIPTS, texts
from tiny_models import tiny_model

from himtok_plugin.mask_text import MASK_END, MASK_START, codes_to_text, mask_token, text_to_codes
from himtok_plugin.masks import from_square, load_mask
from himtok_plugin.prediction.predictor import Answer, MaskPredictor

SIZE = (12, 18)
TOKENIZER = tiny_model(seed=3)  # 4 tokens per mask, 12 codes
K, V = TOKENIZER.config.num_mask_tokens, TOKENIZER.config.codebook_size
C = [mask_token(code) for code in range(V)]


def predicted(text: str, **options):
    return MaskPredictor(TOKENIZER, **options)([Answer(text, SIZE)])[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"At {MASK_START}{C[3]}{C[1]}", [([3, 1], False)], id="cut in the middle of a mask"),
        pytest.param(f"At {MASK_START}{C[3]}{C[1][:-3]}", [([3], False)], id="cut in the middle of a code"),
        pytest.param(f"At {MASK_START}", [], id="cut behind the start"),
        pytest.param(f"{C[3]}{C[1]} here", [([3, 1], False)], id="codes without start and end"),
        pytest.param(f"{C[3]}{C[1]}{MASK_END}", [([3, 1], False)], id="codes without start"),
        pytest.param(f"{MASK_START} nothing.", [], id="start without end and codes"),
        pytest.param(f"{MASK_START}{C[3]} nothing.", [([3], False)], id="start without end"),
        pytest.param(
            f"{MASK_START}{C[3]}{MASK_START}{C[1]}{MASK_END}", [([3], False), ([1], True)], id="nested starts"
        ),
        pytest.param(f"{MASK_START}{MASK_START}{C[1]}{MASK_END}", [([1], True)], id="doubled start"),
        pytest.param(f"{MASK_START}{C[1]}{MASK_END}{MASK_END}", [([1], True)], id="doubled end"),
        pytest.param(f"{MASK_START}{C[3] * 33}{MASK_END}", [([3] * K, False)], id="too many codes"),
        pytest.param(f"{MASK_START}{C[3]}<|mt_12|>{C[1]}{MASK_END}", [([3, 1], False)], id="code beyond the codebook"),
        pytest.param(f"{MASK_START}{MASK_END}", [], id="no code"),
        pytest.param(MASK_END, [], id="end alone"),
        *(
            pytest.param(f"{script}{codes_to_text([3])}{script}{MASK_START}{C[1]}{script}", [([3], True), ([1], False)])
            for script in SCRIPTS
        ),
    ],
)
def test_a_malformed_mask_is_decoded_from_its_codes_and_marked_incomplete(text, expected):
    masks = predicted(text)
    assert [(mask.codes, mask.complete) for mask in masks] == expected
    for mask in masks:
        square = TOKENIZER.decode(torch.tensor([mask.codes]))[0].detach().numpy()
        assert np.array_equal(mask.mask, from_square(square, SIZE))


@settings(max_examples=60, deadline=None)
@given(texts, st.booleans())
def test_no_text_crashes_a_prediction(text, soft):
    codes = [code for span in text_to_codes(text, V, K) for code in span.codes]
    probabilities = torch.full((len(codes), V), 1 / V) if soft else None
    (masks,) = MaskPredictor(TOKENIZER)([Answer(text, SIZE, probabilities)])
    assert [code for mask in masks for code in mask.codes] == codes
    for mask in masks:
        row = mask.to_dict()
        assert load_mask({"size": row["size"], "counts": row["counts"]}).shape == SIZE
        assert text[mask.start : mask.end].count(MASK_START) <= 1
        if mask.complete:
            assert "".join(text[mask.start : mask.end].split()) == codes_to_text(mask.codes)
