"""Segments in the answers of `swift deploy`, masks in its requests.

Contract: `SegmentChatRequest` is ms-swift's chat request with `masks` (for every `<mask>` in its questions) and
`mask_previews`. `answer_with_segments` checks such a request before any engine sees it, so that a bad one fails alone
and is told why, and puts `segments` into the message of every choice; in a stream, into the delta of the chunk that
closes a mask, and `previews` into chunks within one. All masks come from `prediction.py`, on threads of their own.
Does not know HTTP; how requests come in and answers go out is ms-swift's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from swift.infer_engine import RequestConfig

from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime

from .chat_requests import SegmentInferRequest
from .request_checks import check_previews, check_request
from .segment_messages import add_segments
from .segment_stream import SegmentStream


async def answer_with_segments(
    runtime: MaskRuntime, infer: Callable, request: SegmentInferRequest, config: RequestConfig, **kwargs
):
    """The engine's answer to a request, with segments.

    Args:
        runtime: the run's masks.
        infer: `infer_async` of the engine.
        request, config, kwargs: its arguments.

    Returns:
        ms-swift's response, or an asynchronous iterator of its chunks.

    Raises:
        ValueError: a bad request.
        Exception: whatever the engine raises before its first chunk.
    """
    if config.stream and config.n not in (None, 1):
        raise ValueError(f"n: got {config.n} with stream, expected 1")
    if config.stream and runtime.settings.refiner == "zoom":
        raise ValueError("stream: got True, expected False: this server's --refiner zoom looks at whole answers")
    request.mask_previews = check_previews(request.mask_previews, runtime)
    image = await asyncio.to_thread(check_request, request, runtime)
    answer = await infer(request, config, **kwargs)
    if not config.stream:
        await asyncio.to_thread(add_segments, runtime, answer, image)
        return answer
    # Once a stream has begun, the status that says "bad request" is gone: so wait for what comes first.
    first = await anext(answer, None)
    return _stream(SegmentStream(runtime, image, request.mask_previews), first, answer)


async def _stream(segments: SegmentStream, first: Any, rest: AsyncIterator) -> AsyncIterator:
    if first is None:
        return
    yield await asyncio.to_thread(segments.add, first)
    async for chunk in rest:
        yield await asyncio.to_thread(segments.add, chunk)
