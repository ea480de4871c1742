"""Segments in the chunks of a streamed answer.

Contract: `SegmentStream.add_to_chunk` adds `segments` to the delta of the chunk that closes a mask, and `previews` to
chunks within a mask. `should_flush` decides where ms-swift's streamer must pass its text on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from swift.infer_engine.protocol import DeltaMessage
from torch import Tensor

from himtok_plugin.lmm.token_logprobs import code_probabilities_from_logprobs
from himtok_plugin.mask_text import (
    MASK_END,
    MASK_START,
    MaskSpan,
    text_to_codes,
)
from himtok_plugin.prediction.predictor import Answer
from himtok_plugin.prediction.refinement import SAM_KINDS
from himtok_plugin.prediction.segments import make_segments
from himtok_plugin.swift_integration.answering.engine_logprobs import get_logprobs
from himtok_plugin.swift_integration.answering.response_masks import refine_with_sam
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime
from himtok_plugin.swift_integration.samples.sample_images import load_sample_image

from .request_checks import RequestImage
from .segment_messages import DoubtfulSegmentDelta, SegmentDelta, copy_fields

PROBABILITIES_ATTRIBUTE = "himtok_recorded"


class SegmentStream:
    """The segments of one streamed answer.

    Args:
        runtime: the run's masks.
        image: the request's first image; None for an answer without segments.
        previews: numbers of mask tokens after which to preview a mask.
        preview_side: maximum height and width of previews in pixels; None: those of the image.
        unknown_words: see `KnownWords.find_unknown`; the first delta has them, if there are some.
    """

    def __init__(
        self,
        runtime: MaskRuntime,
        image: RequestImage | None,
        previews: list[int],
        preview_side: int | None = None,
        unknown_words: Sequence[str] = (),
    ):
        self.runtime = runtime
        self.image = image
        self.previews = previews
        self.preview_side = preview_side
        self._unknown_words = list(unknown_words)  # until they are sent
        self._text = ""
        self._sent = 0  # segments
        self._previewed = (0, 0)  # number of the mask, number of its tokens
        self._logprobs: list[Any] = []  # of the answer's tokens so far, from an engine other than ms-swift's own

    def add_to_chunk(self, chunk: Any) -> Any:
        """Replace the delta of the answer's next chunk by a `SegmentDelta`, in place, and return the chunk."""
        choice = chunk.choices[0]
        self._logprobs += (get_logprobs(choice) or {}).get("content") or []
        probabilities_of = chunk.__dict__.pop(PROBABILITIES_ATTRIBUTE, None)
        if probabilities_of is None and self._logprobs:
            probabilities_of = self._get_probabilities
        delta = SegmentDelta(**copy_fields(choice.delta, DeltaMessage))
        if self._unknown_words:
            delta = DoubtfulSegmentDelta(**copy_fields(delta, SegmentDelta), unknown_words=self._unknown_words)
            self._unknown_words = []
        choice.delta = delta
        self._text += delta.content or ""
        if self.image is None:
            return chunk
        spans = [span for span in self._find_spans() if span.codes]
        closed = len(spans)
        if choice.finish_reason is None and spans and not self._text[: spans[-1].end].endswith(MASK_END):
            closed -= 1
        if closed > self._sent:
            new = range(self._sent, closed)
            delta.segments = self._make_segments(self.image, spans, new, probabilities_of, refine=True)
            self._sent = closed
        if closed < len(spans):
            progress = closed, len(spans[closed].codes)
            if progress[1] in self.previews and progress != self._previewed:
                self._previewed = progress
                small = _shrink_image(self.image, self.preview_side)
                previews = self._make_segments(small, spans, range(closed, closed + 1), probabilities_of)
                delta.previews = [{**preview, "index": closed} for preview in previews]
        return chunk

    def _get_probabilities(self, codes: list[int]) -> Tensor | None:
        """Probabilities (n, v) of the text's n codes; None if they are not those of the log-probabilities.

        There can be more log-probabilities than text, because a stream sends a token when its text is complete.
        """
        listed, found = code_probabilities_from_logprobs(self._logprobs, self.runtime.codebook_size)
        return found[: len(codes)] if listed[: len(codes)] == codes else None

    def _find_spans(self) -> list[MaskSpan]:
        return text_to_codes(self._text, self.runtime.codebook_size, self.runtime.num_mask_tokens)

    def _make_segments(
        self,
        image: RequestImage,
        spans: list[MaskSpan],
        wanted: range,
        probabilities_of: Callable | None,
        refine: bool = False,
    ) -> list[dict[str, Any]]:
        """Decode the masks `wanted` of the answer so far."""
        codes = [code for span in spans for code in span.codes]
        probabilities = None if probabilities_of is None else probabilities_of(codes)
        # Only the text after the masks that were sent before, so that they are not decoded again.
        start = spans[wanted.start - 1].end if wanted.start else 0
        text = self._text[start : spans[wanted.stop - 1].end]
        if probabilities is not None:
            before = sum(len(span.codes) for span in spans[: wanted.start])
            count = sum(len(spans[i].codes) for i in wanted)
            probabilities = probabilities[before : before + count]
        (masks,) = self.runtime.predict([Answer(text, image.size, probabilities)])
        if masks and refine and self.runtime.settings.refiner in SAM_KINDS:
            masks = refine_with_sam(self.runtime, load_sample_image(image.source), masks)
        return make_segments(text, masks, self.runtime.settings.max_outline_sides)


def _shrink_image(image: RequestImage, side: int | None) -> RequestImage:
    """The image with the size that its previews have."""
    h, w = image.size
    scale = 1.0 if side is None else min(1.0, side / max(h, w))
    return RequestImage(image.source, (max(1, round(h * scale)), max(1, round(w * scale))))


def should_flush(text: str, previews: list[int]) -> bool:
    """Whether a stream must send its text now: where a mask closes or is to be previewed.

    Args:
        text: the answer so far.
        previews: numbers of mask tokens after which to preview a mask.
    """
    if text.endswith(MASK_END):
        return True
    start = text.rfind(MASK_START) if previews else -1
    if start < 0:
        return False
    spans = text_to_codes(text[start:])
    return len(spans) == 1 and spans[0].end == len(text) - start and len(spans[0].codes) in previews
