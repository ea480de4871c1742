"""Messages."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from swift.infer_engine.protocol import ChatMessage, DeltaMessage

from himtok_plugin.prediction.segments import make_segments
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime

from .request_checks import RequestImage
from .response_masks import RESPONSE_ATTRIBUTE, predict_masks_from_text


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


def add_segments(runtime: MaskRuntime, response: Any, image: RequestImage | None) -> None:
    """Put segments into every choice of a response: of the masks that came with it, else of those in its text."""
    for choice in response.choices:
        message = choice.message
        masks = getattr(message, RESPONSE_ATTRIBUTE, None)
        if masks is None:  # an engine that is not ms-swift's own
            row = {"images": [] if image is None else [image.source]}
            masks = predict_masks_from_text(runtime, message.content, row, choice.logprobs)
        segments = make_segments(message.content, masks)
        choice.message = SegmentMessage(**_own_fields(message, ChatMessage), segments=segments)


def _own_fields(message: Any, kind: type) -> dict[str, Any]:
    return {f.name: getattr(message, f.name) for f in fields(kind)}
