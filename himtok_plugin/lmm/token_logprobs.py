"""Code probabilities from the log-probabilities that servers return, for soft decoding without access to logits.

Reads `logprobs.content` of OpenAI's API, which vLLM, SGLang, LMDeploy and ms-swift's own engine return
(`logprobs: true, top_logprobs: k`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from himtok_plugin.hierarchical_loss import LOGIT_SCALE
from himtok_plugin.mask_text import text_to_codes


def code_probabilities_from_logprobs(
    content: Iterable[Any], codebook_size: int, scale: float = LOGIT_SCALE
) -> tuple[list[int], Tensor]:
    """Compute the code probabilities at every code of an answer.

    A log-probability is the logit minus a constant, so softmax(scale x logits) over the codes is the normalised
    exp(scale x log-probability). Only the codes among the k alternatives are known; the others get probability 0. With
    scale 2 the error is small: before normalisation, the unknown codes have at most their total probability under the
    model times the probability of the k-th alternative.

    The log-probabilities must be the model's own, at temperature 1, such as vLLM's default `logprobs_mode`
    "raw_logprobs". A grammar may mask tokens.

    Args:
        content: one entry per generated token, a dict or an object with `token` (its text), `logprob` and
            `top_logprobs` (a list of such entries, may be missing).
        codebook_size: v, the number of codes.
        scale: factor on the logits before the softmax.

    Returns:
        The codes among the tokens, in order, and their probabilities, (codes, v) float32, which sum to 1 over v. The
        generated code is included even if it is not among the alternatives.

    Raises:
        ValueError: an entry has no token, or its log-probability is not a number.
    """
    codes: list[int] = []
    logprobs: list[dict[int, float]] = []  # by code
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
        logprobs.append(known)
    probabilities = torch.zeros(len(codes), codebook_size)
    for i, (code, known) in enumerate(zip(codes, logprobs, strict=True)):
        values = torch.tensor(list(known.values()), dtype=torch.float64)
        if values.isneginf().all():  # the server returned -inf for the token that it generated
            probabilities[i, code] = 1
            continue
        probabilities[i, list(known)] = (scale * values).softmax(0).float()
    return codes, probabilities


def _get(entry: Any, name: str) -> Any:
    return entry.get(name) if isinstance(entry, dict) else getattr(entry, name, None)


def _code(entry: Any, codebook_size: int, position: int) -> int | None:
    """The code of an entry's token, None if the token is not a code."""
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
