"""Log-probabilities as servers return them -> code probabilities.

Purpose: soft decoding with engines that do not show their logits. Reads OpenAI's `logprobs.content`, which vLLM,
SGLang, LMDeploy and ms-swift's own engine return (`logprobs: true, top_logprobs: k`). Does not know of engines and of
images.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from himtok_plugin.hierarchical_loss import LOGIT_SCALE
from himtok_plugin.mask_text import text_to_codes


def code_probabilities_of_logprobs(
    content: Iterable[Any], codebook_size: int, scale: float = LOGIT_SCALE
) -> tuple[list[int], Tensor]:
    """Code probabilities at every code of an answer.

    A log-probability is the logit minus a constant, so softmax(scale x logits) over the codes is the codes'
    exp(scale x log-probability), normalised. Only codes among the k alternatives are known; the others get nothing. At
    scale 2 that is little: what all of them together would have had, before normalising, is at most their share under
    the model times the probability of the k-th alternative.

    The log-probabilities must be the model's own (temperature 1; masking by a grammar does not matter): vLLM's
    `logprobs_mode` "raw_logprobs", its default.

    Args:
        content: one entry per generated token, a dict or an object with `token` (its text), `logprob` and
            `top_logprobs` (entries alike, may be missing).
        codebook_size: v, the number of codes.
        scale: factor on the logits before the softmax.

    Returns:
        the codes among the tokens, in order; (codes, v) float32 probabilities, rows sum to 1. The generated code counts
        even where it is not among the alternatives.

    Raises:
        ValueError: an entry without a token or with a log-probability that is no number.
    """
    codes: list[int] = []
    rows: list[dict[int, float]] = []
    for position, entry in enumerate(content):
        code = _code(entry, codebook_size, position)
        if code is None:
            continue
        known: dict[int, float] = {}
        for alternative in (*(_get(entry, "top_logprobs") or ()), entry):
            other = _code(alternative, codebook_size, position)
            if other is not None:
                known[other] = _logprob(alternative, position)
        codes.append(code)
        rows.append(known)
    probabilities = torch.zeros(len(codes), codebook_size)
    for row, (code, known) in enumerate(zip(codes, rows, strict=True)):
        values = torch.tensor(list(known.values()), dtype=torch.float64)
        if values.isneginf().all():  # a server that says -inf of what it has chosen
            probabilities[row, code] = 1
            continue
        probabilities[row, list(known)] = (scale * values).softmax(0).float()
    return codes, probabilities


def _get(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, dict) else getattr(entry, name, None)


def _code(entry: Any, codebook_size: int, position: int) -> int | None:
    """The code that an entry's token is, None for another token."""
    token = _get(entry, "token")
    if not isinstance(token, str):
        raise ValueError(f"logprobs of token {position}: got token {token!r:.80}, expected a text")
    token = token.strip()  # some tokenizers decode a single token with a space in front
    spans = text_to_codes(token, codebook_size)
    if len(spans) != 1 or len(spans[0].codes) != 1 or (spans[0].start, spans[0].end) != (0, len(token)):
        return None
    return spans[0].codes[0]


def _logprob(entry: Any, position: int) -> float:
    value = _get(entry, "logprob")
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value == math.inf:
        raise ValueError(f"logprobs of token {position}: got logprob {value!r:.80}, expected a number")
    return float(value)
