"""Checks and limits of the parameters with which a client asks an engine to generate."""

from __future__ import annotations

import math
from typing import Any

from swift.infer_engine import RequestConfig

from himtok_plugin.swift_integration.options.arguments import HimTokArguments

_MOST_STOP_WORDS = 16
_LONGEST_STOP_WORD = 1000  # characters
# Name, least value, greatest value, whether it has to be above the least.
_RANGES: tuple[tuple[str, float, float, bool], ...] = (
    ("temperature", 0, 100, False),
    ("top_p", 0, 1, False),
    ("min_p", 0, 1, False),
    ("top_k", -1, 2**31 - 1, False),
    ("repetition_penalty", 0, 100, True),
    ("presence_penalty", -100, 100, False),
    ("frequency_penalty", -100, 100, False),
    ("length_penalty", -100, 100, False),
    ("seed", -(2**63), 2**63 - 1, False),
    ("top_logprobs", 0, math.inf, False),
    ("prompt_logprobs", 0, 20, False),
)


def limit_generation(config: RequestConfig, settings: HimTokArguments, max_model_len: int | None = None) -> None:
    """Check the parameters of a request, and set `max_tokens` where neither the client nor the server has set it.

    Args:
        config: the parameters, with those of the server in place of those that the client has left out.
        settings: the server's options.
        max_model_len: tokens of a prompt and its answer together, which the engine limits as well.

    Raises:
        ValueError: a parameter is out of range, or exceeds a limit of the server.
    """
    if config.max_tokens is None and not (max_model_len is not None and max_model_len <= settings.max_answer_tokens):
        config.max_tokens = settings.max_answer_tokens
    for name, limit in (
        ("n", settings.max_choices),
        ("num_beams", settings.max_beams),
        ("best_of", max(settings.max_choices, settings.max_beams)),
        ("max_tokens", settings.max_answer_tokens),
    ):
        value = getattr(config, name)
        if value is not None and not 1 <= value <= limit:
            raise ValueError(f"{name}: got {_show(value)}, expected an integer from 1 to {limit}")
    for name, least, most, above in _RANGES:
        value = getattr(config, name)
        if value is None:
            continue
        is_finite = isinstance(value, int) or math.isfinite(value)
        if not is_finite or not least <= value <= most or (above and value == least):
            bound = f"above {least}" if above else f"of at least {least}"
            upper = "" if most == math.inf else f" and at most {most}"
            raise ValueError(f"{name}: got {_show(value)}, expected a number {bound}{upper}")
    _check_choices(config)
    stop = config.stop or []
    if len(stop) > _MOST_STOP_WORDS or not all(0 < len(word) <= _LONGEST_STOP_WORD for word in stop):
        raise ValueError(
            f"stop: got {len(stop)} texts of {min(map(len, stop))} to {max(map(len, stop))} characters, expected at "
            f"most {_MOST_STOP_WORDS} of 1 to {_LONGEST_STOP_WORD}"
        )


def _check_choices(config: RequestConfig) -> None:
    if config.stream and config.n > 1:
        raise ValueError(f"n: got {config.n}, expected 1 with stream")
    if config.stream and config.num_beams > 1:
        raise ValueError(f"num_beams: got {config.num_beams}, expected 1 with stream")
    if config.num_beams > 1 and config.n > config.num_beams:
        raise ValueError(f"n: got {config.n}, expected at most num_beams, {config.num_beams}")
    if config.n > 1 and config.num_beams == 1 and config.temperature == 0:
        raise ValueError(f"n: got {config.n}, expected 1 with temperature 0, where all answers are the same")


def _show(value: Any) -> str:
    return f"{value!r:.40}" if not isinstance(value, int) or abs(value) < 10**30 else "a huge integer"
