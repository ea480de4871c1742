"""Log-probabilities of engines other than ms-swift's own: masks are decoded softly from them.

Contract: `needs_logprobs` says whether a run needs them and refuses an engine that returns none. `with_logprobs` asks
for them; `keep_logprobs` keeps them for `get_logprobs` and leaves a response as the user has requested it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from copy import copy
from typing import Any

from himtok_plugin.swift_integration.model.constraints import find_engine_kind
from himtok_plugin.swift_integration.options.arguments import HimTokArguments

# Alternatives per token. Masks decoded from 5 are as good as those from all codes (docs/results.md).
MASK_TOP_LOGPROBS = 5
KEPT_ATTRIBUTE = "himtok_logprobs"  # of a choice


def needs_logprobs(engine: Any, settings: HimTokArguments, stream: bool = False) -> bool:
    """Whether the engine has to be asked for log-probabilities: soft decoding by an engine that runs no template code.

    Args:
        engine: an inference engine of ms-swift.
        settings: the run's options.
        stream: whether the answer comes in chunks.

    Raises:
        ValueError: ms-swift returns no log-probabilities of this engine.
    """
    kind = find_engine_kind(engine)
    if kind is None or settings.mask_decoding == "hard":
        return False
    if kind == "sglang":
        raise ValueError(
            "mask_decoding: got 'soft', expected 'hard' with infer_backend='sglang': ms-swift returns none of its "
            "log-probabilities, so masks are decoded from the codes alone and have no score"
        )
    if kind == "lmdeploy" and stream:
        raise ValueError(
            "stream: got True, expected False with infer_backend='lmdeploy' and mask_decoding='soft': the "
            "log-probabilities in its streams cannot be matched with the text"
        )
    return True


def with_logprobs(config: Any) -> Any:
    """Return a copy of a `RequestConfig` that asks for at least `MASK_TOP_LOGPROBS` alternatives."""
    asking = copy(config)
    asking.logprobs = True
    asking.top_logprobs = max(config.top_logprobs or 0, MASK_TOP_LOGPROBS)
    return asking


def keep_logprobs(response: Any, config: Any) -> Any:
    """Keep the log-probabilities of a response or of a chunk, and leave in it what was requested, in place.

    Args:
        response: the engine's answer to `with_logprobs(config)`; an error, which has no choices, stays as it is.
        config: what the user has requested.
    """
    for choice in getattr(response, "choices", ()):
        setattr(choice, KEPT_ATTRIBUTE, choice.logprobs)
        choice.logprobs = _select_requested(choice.logprobs, config)
    return response


def get_logprobs(choice: Any) -> dict[str, Any] | None:
    """Return all log-probabilities of a choice; None if the engine returned none."""
    return getattr(choice, KEPT_ATTRIBUTE, choice.logprobs)


class CollectedStream:
    """The chunks of a stream, and the log-probabilities of those that were read so far, as in a complete response."""

    def __init__(self, chunks: Iterable[Any], config: Any):
        self.logprobs: dict[str, Any] = {"content": []}
        self._chunks = chunks
        self._config = config

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._chunks:
            keep_logprobs(chunk, self._config)
            self.logprobs["content"] += (get_logprobs(chunk.choices[0]) or {}).get("content") or []
            yield chunk


async def infer_with_logprobs(infer: Callable, request: Any, config: Any, **kwargs: Any) -> Any:
    """Await `infer`, the `infer_async` of an engine that `needs_logprobs`; its answers have kept log-probabilities."""
    answer = await infer(request, with_logprobs(config), **kwargs)
    return _keep_in_chunks(answer, config) if config.stream else keep_logprobs(answer, config)


async def _keep_in_chunks(chunks: AsyncIterator[Any], config: Any) -> AsyncIterator[Any]:
    async for chunk in chunks:
        yield keep_logprobs(chunk, config)


def _select_requested(logprobs: dict[str, Any] | None, config: Any) -> dict[str, Any] | None:
    if logprobs is None or not config.logprobs:
        return None
    content = []
    for entry in logprobs["content"]:
        entry = dict(entry)
        alternatives = entry.pop("top_logprobs")
        if config.top_logprobs is not None:
            entry["top_logprobs"] = alternatives[: config.top_logprobs]
        content.append(entry)
    return {**logprobs, "content": content}
