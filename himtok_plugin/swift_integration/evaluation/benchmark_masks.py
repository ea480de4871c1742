"""Masks in a benchmark's questions and answers, with the mask tokenizer of the evaluated model.

Contract: a server runs the model; masks are encoded and predicted in this process, on the CPU, from the text and the
log-probabilities of answers.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from himtok_plugin.data.samples import load_squares
from himtok_plugin.lmm.token_logprobs import code_probabilities_from_logprobs
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
def find_evaluated_mask_tokenizer() -> Path:
    """Return the folder of the mask tokenizer that belongs to the evaluated model."""
    args: Any = get_current_arguments()
    return resolve_mask_tokenizer(
        args.mask_tokenizer, os.fspath(getattr(args, "model_dir", None) or args.model), args.adapter_folders
    )


@cache
def load_evaluated_mask_tokenizer() -> Any:
    """Load the mask tokenizer of the evaluated model to the CPU, because the server uses the GPU."""
    return load_mask_tokenizer(find_evaluated_mask_tokenizer()).eval().requires_grad_(False)


@cache
def make_mask_predictor() -> MaskPredictor:
    """Make the predictor with the options of this run."""
    args: Any = get_current_arguments()
    calibration = Calibration.load(find_evaluated_mask_tokenizer())
    return MaskPredictor(
        load_evaluated_mask_tokenizer(),
        args.mask_decoding,
        args.mask_threshold,
        calibration,
        args.min_score,
        resize=args.mask_resize,
    )


def make_answer(text: str, size: tuple[int, int], logprobs: Any) -> Answer:
    """Make the predictor's input from an answer.

    Args:
        text: the answer.
        size: (h, w) of the image.
        logprobs: the log-probabilities of its tokens as in an OpenAI response, None without.
    """
    if not logprobs:
        return Answer(text, size)
    config = load_evaluated_mask_tokenizer().config
    spans = text_to_codes(text, config.codebook_size, config.num_mask_tokens)
    codes, probabilities = code_probabilities_from_logprobs(logprobs, config.codebook_size)
    is_unchanged = codes == [code for span in spans for code in span.codes]  # evalscope can filter the text
    return Answer(text, size, probabilities if is_unchanged and codes else None)


def get_logprobs(task_state: Any) -> Any:
    """Return the log-probabilities of evalscope's first choice, None without."""
    choices = getattr(task_state.output, "choices", None)
    logprobs = choices[0].logprobs if choices else None
    return None if logprobs is None else logprobs.content


def encode_questions(texts: list[str], masks: list[Any], size: tuple[int, int]) -> list[str]:
    """Replace `<mask>` in messages by mask text, which needs no support from a server.

    Args:
        texts: the messages.
        masks: one source per `<mask>`, in order.
        size: (h, w) of the image.
    Raises:
        ValueError: a message has another placeholder of ms-swift.
    """
    for text in texts:
        for placeholder in (BOX_PLACEHOLDER, OBJECT_PLACEHOLDER):
            if placeholder in text:
                raise ValueError(
                    f"messages: got {placeholder} in a question, expected its text: a server does not replace it by "
                    "what the model's template writes"
                )
    if not masks:
        return texts
    tokenizer = load_evaluated_mask_tokenizer()
    squares = load_squares(dict(enumerate(masks)), tokenizer.config.image_size, size, "row")
    with torch.inference_mode():
        codes = tokenizer.encode(torch.from_numpy(squares.astype(np.float32) / 255)).tolist()
    mask_texts = iter([codes_to_text(each) for each in codes])
    return [
        "".join(piece if i == 0 else next(mask_texts) + piece for i, piece in enumerate(text.split(MASK_PLACEHOLDER)))
        for text in texts
    ]
