"""Segments in the answers of `swift deploy`, masks in its requests.

Contract: `SegmentChatRequest` is ms-swift's chat request with `masks` (for every `<mask>` in its questions) and
`mask_previews`. `answer_with_segments` checks such a request before any engine sees it, so that a bad one fails alone
and is told why, and puts `segments` into the message of every choice; in a stream, into the delta of the chunk that
closes a mask, and `previews` into chunks within one. All masks come from `prediction.py`, on threads of their own.
Does not know HTTP; how requests come in and answers go out is ms-swift's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from PIL import Image
from swift.infer_engine import InferRequest, RequestConfig
from swift.infer_engine.protocol import ChatCompletionRequest, ChatMessage, DeltaMessage
from swift.template import StdTemplateInputs
from swift.template.vision_utils import load_file

from himtok_plugin.mask_text import (
    MASK_END,
    MASK_PLACEHOLDER,
    MASK_START,
    MaskSpan,
    count_placeholders,
    text_to_codes,
)
from himtok_plugin.masks.sources import load_mask
from himtok_plugin.prediction.predictor import Answer
from himtok_plugin.prediction.refinement import SAM_KINDS
from himtok_plugin.prediction.segments import segments_of
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime

from .result_masks import RESPONSE_ATTRIBUTE, load_row_image, masks_of_text, refined_by_model

RECORDED_ATTRIBUTE = "himtok_recorded"
_RLE_KEYS = {"size", "counts"}  # no paths, those are the server's files; no polygons, a few bytes of them take long
_LONGEST_REASON = 200  # characters


@dataclass
class SegmentInferRequest(InferRequest):
    """What goes to the engine; templates find the further fields in `extra_kwargs`."""

    masks: list[Any] = field(default_factory=list)
    mask_previews: list[int] | None = None


@dataclass
class SegmentChatRequest(ChatCompletionRequest):
    """A chat request as clients send it; `extra_body` of the `openai` package holds the further fields.

    Attributes:
        masks: one COCO RLE for every `<mask>` in the messages, of the first image's size.
        mask_previews: numbers of tokens after which a stream previews a mask; None: as the server's flag says.
    """

    masks: list[Any] = field(default_factory=list)
    mask_previews: list[int] | None = None

    def __post_init__(self):
        try:
            super().__post_init__()
        except (AttributeError, KeyError, TypeError) as error:  # only a ValueError is told to the client
            raise ValueError(f"messages: {_reason(error)}: expected messages with role and content") from error

    def parse(self) -> tuple[SegmentInferRequest, RequestConfig]:
        request, config = super().parse()
        return SegmentInferRequest(**vars(request), masks=self.masks, mask_previews=self.mask_previews), config


@dataclass
class SegmentMessage(ChatMessage):
    """A whole answer."""

    segments: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class SegmentDelta(DeltaMessage):
    """A piece of an answer: the masks that it closes, and how the one that it leaves open looks so far.

    A preview is a segment with one more key, `index`: which of the answer's masks it will be.
    """

    segments: list[dict[str, Any]] | None = None
    previews: list[dict[str, Any]] | None = None


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


# ----- requests


@dataclass(frozen=True)
class RequestImage:
    """What the masks of an answer belong to: the request's first image, as ms-swift reads it, and its (h, w)."""

    source: Any
    size: tuple[int, int]


def check_request(request: SegmentInferRequest, runtime: MaskRuntime) -> RequestImage | None:
    """Look at a request's images and masks; nothing large is allocated for one beyond the limits.

    Returns:
        The first image, None for a request without images.

    Raises:
        ValueError: says what is wrong with which of them.
    """
    settings = runtime.settings
    try:
        inputs = StdTemplateInputs.from_dict(asdict(request))  # as the template will read it
    except Exception as error:
        raise ValueError(f"messages: {_reason(error)}: expected messages with role and content") from error
    sizes = [_image_size(image, f"images[{i}]", settings.max_image_pixels) for i, image in enumerate(inputs.images)]
    masks = request.masks
    texts = [message["content"] for message in inputs.messages if isinstance(message.get("content"), str)]
    placeholders = sum(count_placeholders(text) for text in texts)
    if len(masks) > settings.max_request_masks:
        raise ValueError(f"masks: got {len(masks)}, expected at most {settings.max_request_masks}")
    if len(masks) != placeholders:
        raise ValueError(
            f"masks: got {len(masks)} with {placeholders} {MASK_PLACEHOLDER} in the messages, expected one for each"
        )
    if masks and not sizes:
        raise ValueError("masks: got a request without an image, expected the image that they belong to")
    for i, mask in enumerate(masks):
        _check_mask(mask, sizes[0], f"masks[{i}]")
    return RequestImage(inputs.images[0], sizes[0]) if sizes else None


def check_previews(previews: list[int] | None, runtime: MaskRuntime) -> list[int]:
    """What a request asks for, else what the server's flag says; ValueError for what is no number of mask tokens."""
    if previews is None:
        return runtime.settings.mask_previews
    limit = runtime.num_mask_tokens
    wrong = next((n for n in previews if not 1 <= n <= limit), None)
    if wrong is not None:
        raise ValueError(f"mask_previews: got {wrong!r}, expected numbers of tokens from 1 to {limit}")
    return previews


def refusal_reason(errors: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic has against a request, without the request."""
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']:.{_LONGEST_REASON}}" for error in errors[:3])


def _image_size(image: Any, name: str, max_pixels: int) -> tuple[int, int]:
    """(h, w) read off an image's header; the template decodes the rest."""
    try:
        with Image.open(load_file(image)) as opened:
            h, w = opened.height, opened.width
    except Exception as error:  # base64, PIL and the file system have their own each
        raise ValueError(f"{name}: cannot be read ({_reason(error)}), expected an image") from error
    if h * w > max_pixels:
        raise ValueError(f"{name}: got {h} x {w} = {h * w} pixels, expected at most {max_pixels}")
    return h, w


def _check_mask(mask: Any, size: tuple[int, int], name: str) -> None:
    if not isinstance(mask, dict) or set(mask) != _RLE_KEYS:
        raise ValueError(f"{name}: got {mask!r:.80}, expected a COCO RLE {{'size': [h, w], 'counts': …}}")
    if mask["size"] != list(size):  # before anything of that size is made
        raise ValueError(f"{name}: got size {mask['size']!r:.80}, expected {list(size)}, the first image's [h, w]")
    try:
        load_mask(mask, size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _reason(error: Exception) -> str:
    """One line of bounded length: PIL and base64 like to quote the data."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.{_LONGEST_REASON}}"


# ----- answers


def add_segments(runtime: MaskRuntime, response: Any, image: RequestImage | None) -> None:
    """Put segments into every choice of a response: of the masks that came with it, else of those in its text."""
    for choice in response.choices:
        message = choice.message
        masks = getattr(message, RESPONSE_ATTRIBUTE, None)
        if masks is None:  # an engine that is not ms-swift's own
            row = {"images": [] if image is None else [image.source]}
            masks = masks_of_text(runtime, message.content, row, choice.logprobs)
        segments = segments_of(message.content, masks)
        choice.message = SegmentMessage(**_own_fields(message, ChatMessage), segments=segments)


class SegmentStream:
    """Segments of one streamed answer, chunk by chunk.

    Args:
        runtime: the run's masks.
        image: the request's first image; without one there are no segments.
        previews: numbers of tokens after which to preview a mask.
    """

    def __init__(self, runtime: MaskRuntime, image: RequestImage | None, previews: list[int]):
        self.runtime = runtime
        self.image = image
        self.previews = previews
        self._text = ""
        self._given = 0  # segments
        self._previewed = (0, 0)  # which mask, how many of its tokens

    def add(self, chunk: Any) -> Any:
        """The chunk, changed in place: its delta has segments."""
        recorded = chunk.__dict__.pop(RECORDED_ATTRIBUTE, None)
        choice = chunk.choices[0]
        delta = SegmentDelta(**_own_fields(choice.delta, DeltaMessage))
        choice.delta = delta
        self._text += delta.content or ""
        if self.image is None:
            return chunk
        spans = [span for span in self._spans() if span.codes]
        closed = len(spans)
        if choice.finish_reason is None and spans and not self._text[: spans[-1].end].endswith(MASK_END):
            closed -= 1
        if closed > self._given:
            delta.segments = self._segments(spans, range(self._given, closed), recorded, refined=True)
            self._given = closed
        if closed < len(spans):
            progress = closed, len(spans[closed].codes)
            if progress[1] in self.previews and progress != self._previewed:
                self._previewed = progress
                previews = self._segments(spans, range(closed, closed + 1), recorded)
                delta.previews = [{**preview, "index": closed} for preview in previews]
        return chunk

    def _spans(self) -> list[MaskSpan]:
        return text_to_codes(self._text, self.runtime.codebook_size, self.runtime.num_mask_tokens)

    def _segments(
        self, spans: list[MaskSpan], wanted: range, recorded: Callable | None, refined: bool = False
    ) -> list[dict[str, Any]]:
        probabilities = None if recorded is None else recorded([code for span in spans for code in span.codes])
        # Masks given before are not decoded again: only what follows them is predicted.
        start = spans[wanted.start - 1].end if wanted.start else 0
        text = self._text[start : spans[wanted.stop - 1].end]
        if probabilities is not None:
            before = sum(len(span.codes) for span in spans[: wanted.start])
            count = sum(len(spans[i].codes) for i in wanted)
            probabilities = probabilities[before : before + count]
        (masks,) = self.runtime.predict([Answer(text, self.image.size, probabilities)])
        if masks and refined and self.runtime.settings.refiner in SAM_KINDS:
            masks = refined_by_model(self.runtime, load_row_image(self.image.source), masks)
        return segments_of(text, masks)


def passes_text_on_immediately(text: str, previews: list[int]) -> bool:
    """Whether a stream should hand its text on here: where a mask closes, and where it is to be previewed."""
    if text.endswith(MASK_END):
        return True
    start = text.rfind(MASK_START) if previews else -1
    if start < 0:
        return False
    spans = text_to_codes(text[start:])
    return len(spans) == 1 and spans[0].end == len(text) - start and len(spans[0].codes) in previews


def _own_fields(message: Any, kind: type) -> dict[str, Any]:
    return {f.name: getattr(message, f.name) for f in fields(kind)}
