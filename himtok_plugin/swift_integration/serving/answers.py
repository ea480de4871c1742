"""Answers of `swift deploy` with segments: the path of one request through the engine.

Contract: `answer_with_segments` adds `segments` to every message, or to the chunks of a stream. Masks are decoded and
drawn by a few threads, which all requests share.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from typing import Any

from swift.infer_engine import RequestConfig

from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime
from himtok_plugin.swift_integration.samples.mask_column import format_row_name
from himtok_plugin.swift_integration.samples.sample_images import read_image_size

from .chat_requests import SegmentInferRequest, shorten_reason
from .request_checks import RequestImage, check_masks, resolve_previews
from .request_media import MEDIA_FOLDER
from .segment_messages import add_segments
from .segment_stream import SegmentStream

_LONGEST_REASON = 500  # characters
_MEDIA_FILE = re.compile(rf"\S*{MEDIA_FOLDER}\S*")


async def answer_with_segments(
    runtime: MaskRuntime,
    infer: Callable,
    request: SegmentInferRequest,
    config: RequestConfig,
    threads: Executor | None = None,
    **kwargs: Any,
) -> Any:
    """Answer a request with segments.

    Args:
        runtime: the run's masks.
        infer: `infer_async` of the engine.
        request, config, kwargs: arguments of `infer`.
        threads: where masks are checked, decoded and drawn; None: the event loop's own threads.

    Returns:
        ms-swift's response, or an asynchronous iterator of its chunks.

    Raises:
        ValueError: the request is bad, or the engine fails before the first chunk.
    """
    if config.stream and config.n not in (None, 1):
        raise ValueError(f"n: got {config.n}, expected 1 with stream")
    if config.stream and runtime.settings.refiner == "zoom":
        raise ValueError("stream: got True, expected False: this server's --refiner zoom needs complete answers")
    request.mask_previews = resolve_previews(request.mask_previews, runtime)
    if request.preview_side is not None and request.preview_side < 1:
        raise ValueError(f"preview_side: got {request.preview_side}, expected a number of pixels, at least 1")
    run = asyncio.get_running_loop().run_in_executor
    image = await run(threads, _check_request, request, runtime)
    unknown_words = runtime.find_unknown_words(request.messages)
    try:
        answer = await infer(request, config, **kwargs)
        if not config.stream:
            await run(threads, add_segments, runtime, answer, image, unknown_words)
            return answer
        # The HTTP status can report an error only before the stream begins, so wait for the first chunk.
        first = await anext(answer, None)
    except asyncio.CancelledError:
        request.is_abandoned = True  # the engine skips it
        raise
    except Exception as error:
        raise explain_error(error, request) from error
    segments = SegmentStream(runtime, image, request.mask_previews, request.preview_side, unknown_words)
    return _add_segments_to_chunks(segments, first, answer, request, threads)


def explain_error(error: Exception, request: SegmentInferRequest | None = None) -> ValueError:
    """Return an error of the engine as one that has a text for a client."""
    text = " ".join(str(error).split())[:_LONGEST_REASON].removeprefix(f"{format_row_name(None, None)}: ")
    if MEDIA_FOLDER in text:  # a path of the server says nothing to a client
        text = f"videos, audios: cannot be read ({_MEDIA_FILE.sub('the file', text)}), expected others"
        return ValueError(text)
    if isinstance(error, ValueError) and text:
        return ValueError(text)
    for name in ("videos", "audios"):  # which templates of models that cannot read them assert not to get
        if isinstance(error, AssertionError) and getattr(request, name, None):
            return ValueError(f"{name}: got {len(getattr(request, name))}, expected none: this model cannot read them")
    return ValueError(f"request: got one that the model cannot answer ({shorten_reason(error)}), expected another")


def _check_request(request: SegmentInferRequest, runtime: MaskRuntime) -> RequestImage | None:
    if request.sizes is None:  # the request comes from this process, not from a client
        request.sizes = [read_image_size(image) for image in request.images]
    check_masks(request, runtime.settings)
    return RequestImage(request.images[0], request.sizes[0]) if request.sizes else None


async def _add_segments_to_chunks(
    segments: SegmentStream, first: Any, rest: AsyncIterator, request: SegmentInferRequest, threads: Executor | None
) -> AsyncIterator:
    run = asyncio.get_running_loop().run_in_executor
    try:
        if first is not None:
            yield await run(threads, segments.add_to_chunk, first)
            async for chunk in rest:
                yield await run(threads, segments.add_to_chunk, chunk)
    finally:
        request.is_abandoned = True
