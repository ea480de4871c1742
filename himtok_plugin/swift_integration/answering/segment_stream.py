"""Streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swift.infer_engine.protocol import DeltaMessage

from himtok_plugin.mask_text import (
    MASK_END,
    MASK_START,
    MaskSpan,
    text_to_codes,
)
from himtok_plugin.prediction.predictor import Answer
from himtok_plugin.prediction.refinement import SAM_KINDS
from himtok_plugin.prediction.segments import make_segments
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime
from himtok_plugin.swift_integration.samples.sample_images import load_sample_image

from .request_checks import RequestImage
from .response_masks import refine_with_sam
from .segment_messages import SegmentDelta, _own_fields

PROBABILITIES_ATTRIBUTE = "himtok_recorded"


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
        recorded = chunk.__dict__.pop(PROBABILITIES_ATTRIBUTE, None)
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
            masks = refine_with_sam(self.runtime, load_sample_image(self.image.source), masks)
        return make_segments(text, masks)


def should_flush(text: str, previews: list[int]) -> bool:
    """Whether a stream should hand its text on here: where a mask closes, and where it is to be previewed."""
    if text.endswith(MASK_END):
        return True
    start = text.rfind(MASK_START) if previews else -1
    if start < 0:
        return False
    spans = text_to_codes(text[start:])
    return len(spans) == 1 and spans[0].end == len(text) - start and len(spans[0].codes) in previews
