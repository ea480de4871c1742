"""Answers of `swift deploy` with segments: the path of one chat request.

Contract: `answer_with_segments` checks a request before the engine gets it, so that a bad request fails alone and with
a reason. It adds `segments` to every message, or to the chunks of a stream. Masks are decoded in other threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from swift.infer_engine import RequestConfig

from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime

from .chat_requests import SegmentInferRequest
from .request_checks import check_request, resolve_previews
from .segment_messages import add_segments
from .segment_stream import SegmentStream


async def answer_with_segments(
    runtime: MaskRuntime, infer: Callable, request: SegmentInferRequest, config: RequestConfig, **kwargs: Any
) -> Any:
    """Answer a request with segments.

    Args:
        runtime: the run's masks.
        infer: `infer_async` of the engine.
        request, config, kwargs: arguments of `infer`.

    Returns:
        ms-swift's response, or an asynchronous iterator of its chunks.

    Raises:
        ValueError: the request is bad.
        Exception: the engine fails before the first chunk.
    """
    if config.stream and config.n not in (None, 1):
        raise ValueError(f"n: got {config.n}, expected 1 with stream")
    if config.stream and runtime.settings.refiner == "zoom":
        raise ValueError("stream: got True, expected False: this server's --refiner zoom needs complete answers")
    request.mask_previews = resolve_previews(request.mask_previews, runtime)
    image = await asyncio.to_thread(check_request, request, runtime)
    answer = await infer(request, config, **kwargs)
    if not config.stream:
        await asyncio.to_thread(add_segments, runtime, answer, image)
        return answer
    # The HTTP status can report an error only before the stream begins, so wait for the first chunk.
    first = await anext(answer, None)
    return _add_segments_to_chunks(SegmentStream(runtime, image, request.mask_previews), first, answer)


async def _add_segments_to_chunks(segments: SegmentStream, first: Any, rest: AsyncIterator) -> AsyncIterator:
    if first is None:
        return
    yield await asyncio.to_thread(segments.add_to_chunk, first)
    async for chunk in rest:
        yield await asyncio.to_thread(segments.add_to_chunk, chunk)
