"""Masks of a benchmark's questions and answers, by the mask tokenizer of the model under evaluation.

Contract: everything is made in this process, on the CPU, from text and log-probabilities: the model itself is some
server's. Does not know evalscope's samples, scores and reports.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from himtok_plugin.data.samples import load_squares
from himtok_plugin.lmm.token_logprobs import code_probabilities_of_logprobs
from himtok_plugin.mask_text import (
    BOX_PLACEHOLDER,
    MASK_PLACEHOLDER,
    OBJECT_PLACEHOLDER,
    codes_to_text,
    text_to_codes,
)
from himtok_plugin.prediction.calibration import Calibration
from himtok_plugin.prediction.predictor import Answer, MaskPredictor
from himtok_plugin.swift_integration.model.checkpoint_sidecar import load_mask_tokenizer, resolve_mask_tokenizer
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments


@cache
def source() -> Path:
    args = get_current_arguments()
    return resolve_mask_tokenizer(
        args.mask_tokenizer, os.fspath(getattr(args, "model_dir", None) or args.model), args.adapter_folders
    )


@cache
def mask_tokenizer():
    """The mask tokenizer that belongs to the model under evaluation, on the CPU: the GPU is the server's."""
    return load_mask_tokenizer(source()).eval().requires_grad_(False)


@cache
def mask_predictor() -> MaskPredictor:
    args = get_current_arguments()
    calibration = Calibration.load(source())
    return MaskPredictor(
        mask_tokenizer(),
        args.mask_decoding,
        args.mask_threshold,
        calibration,
        args.min_score,
        resize=args.mask_resize,
    )


def answer_of(text: str, size: tuple[int, int], logprobs: Any) -> Answer:
    if not logprobs:
        return Answer(text, size)
    config = mask_tokenizer().config
    spans = text_to_codes(text, config.codebook_size, config.num_mask_tokens)
    codes, probabilities = code_probabilities_of_logprobs(logprobs, config.codebook_size)
    known = codes == [code for span in spans for code in span.codes]  # else the text was changed on its way
    return Answer(text, size, probabilities if known and codes else None)


def logprobs_of(task_state) -> Any:
    choices = getattr(task_state.output, "choices", None)
    found = choices[0].logprobs if choices else None
    return None if found is None else found.content


def with_codes(texts: list[str], masks: list[Any], size: tuple[int, int]) -> list[str]:
    """Questions with the codes of their masks in place of `<mask>`, which every server reads."""
    for text in texts:
        for placeholder in (BOX_PLACEHOLDER, OBJECT_PLACEHOLDER):
            if placeholder in text:
                raise ValueError(
                    f"messages: got {placeholder} in a question, expected it written out: a server does not know how "
                    "the template at hand writes it"
                )
    if not masks:
        return texts
    tokenizer = mask_tokenizer()
    squares = load_squares(dict(enumerate(masks)), tokenizer.config.image_size, size, "row")
    with torch.inference_mode():
        codes = tokenizer.encode(torch.from_numpy(squares.astype(np.float32) / 255)).tolist()
    written = iter([codes_to_text(each) for each in codes])
    return [
        "".join(piece if i == 0 else next(written) + piece for i, piece in enumerate(text.split(MASK_PLACEHOLDER)))
        for text in texts
    ]
