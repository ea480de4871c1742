"""Messages of `swift deploy` with segments: whole answers, and the deltas of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from swift.infer_engine.protocol import ChatMessage, DeltaMessage

from himtok_plugin.prediction.segments import make_segments
from himtok_plugin.swift_integration.answering.engine_logprobs import get_logprobs
from himtok_plugin.swift_integration.answering.response_masks import RESPONSE_ATTRIBUTE, predict_masks_from_text
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime

from .request_checks import RequestImage


@dataclass
class SegmentMessage(ChatMessage):
    """A complete answer with the segments of its masks."""

    segments: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class DoubtfulSegmentMessage(SegmentMessage):
    """The answer to a question with words that no question of the model's training had."""

    unknown_words: list[str] = field(default_factory=list)


@dataclass
class SegmentDelta(DeltaMessage):
    """A part of a streamed answer.

    Attributes:
        segments: those of the masks that end in this part.
        previews: preview of the mask that is still open, a segment with the additional key `index`: the mask's number
            in the answer, from 0.
    """

    segments: list[dict[str, Any]] | None = None
    previews: list[dict[str, Any]] | None = None


@dataclass
class DoubtfulSegmentDelta(SegmentDelta):
    """The first part of a streamed answer to a question with words that no question of the model's training had."""

    unknown_words: list[str] = field(default_factory=list)


def add_segments(
    runtime: MaskRuntime, response: Any, image: RequestImage | None, unknown_words: Sequence[str] = ()
) -> None:
    """Replace the messages of a response by `SegmentMessage`s, from its masks or, without these, from its text.

    Args:
        runtime: the run's masks.
        response: ms-swift's response.
        image: the request's first image; None for an answer without segments.
        unknown_words: see `KnownWords.find_unknown`; messages get the field only if there are some.
    """
    for choice in response.choices:
        message = choice.message
        masks = getattr(message, RESPONSE_ATTRIBUTE, None)
        if masks is None:  # an engine other than ms-swift's own
            row = {"images": [] if image is None else [image.source]}
            masks = predict_masks_from_text(runtime, message.content, row, get_logprobs(choice))
        segments = make_segments(message.content, masks, runtime.settings.max_outline_sides)
        values = {**copy_fields(message, ChatMessage), "segments": segments}
        choice.message = (
            DoubtfulSegmentMessage(**values, unknown_words=list(unknown_words))
            if unknown_words
            else SegmentMessage(**values)
        )


def copy_fields(message: Any, kind: type) -> dict[str, Any]:
    """Return the fields that `message` has as an instance of the dataclass `kind`."""
    return {f.name: getattr(message, f.name) for f in fields(kind)}
