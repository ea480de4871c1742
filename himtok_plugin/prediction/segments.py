"""Predicted masks as JSON objects for clients of a server: RLE, polygon, box, score, codes and label.

Contract: `make_segments` returns one object per mask of an answer, in order of appearance.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from himtok_plugin.masks import mask_bbox, to_rle
from himtok_plugin.masks.polygons import mask_polygons

if TYPE_CHECKING:
    from .predictor import PredictedMask

_PIXELS_PER_SIDE = 128  # as much work, measured on masks of 1 to 33 megapixels
_SCORE_DIGITS = 6  # further ones depend on what else is in the batch of a server
_LONGEST_LABEL = 200  # characters; also bounds the search
# The phrase before a mask, as base models with grounding write it (InternVL, Qwen).
_REFERENCE = re.compile(r"(?:<ref>|<\|object_ref_start\|>)([^<>]+)(?:</ref>|<\|object_ref_end\|>)\s*:?\s*$")
_BEFORE_COLON = re.compile(r"([^\n:<>]+):\s*$")  # "left: <mask>, right: <mask>"
_SENTENCE_END = re.compile(r"[.;!?]\s+")
_JOINING = re.compile(r"^(?:[\s,;.]|and\s)+")


def segment_to_dict(
    mask: PredictedMask, label: str | None = None, max_outline_sides: int | None = None
) -> dict[str, Any]:
    """Convert a mask to a JSON object.

    Args:
        mask: of the image's size.
        label: what the text calls it.
        max_outline_sides: see `outline`.
    Returns:
        size [h, w] and counts (COCO RLE); polygon, see `outline`; bbox [x1, y1, x2, y2] in pixels,
        x2 and y2 exclusive, zeros for an empty mask; score (rounded), codes and complete, see `PredictedMask`; label.
    """
    return {
        **to_rle(mask.mask),
        "polygon": outline(mask.mask, max_outline_sides),
        "bbox": list(mask_bbox(mask.mask)),
        "score": None if mask.score is None else round(mask.score, _SCORE_DIGITS),
        "codes": mask.codes,
        "label": label,
        "complete": mask.complete,
    }


def outline(mask: np.ndarray, max_sides: int | None = None) -> list[list[int]] | None:
    """Outline a mask, see `masks.polygons.mask_polygons`, in time that depends on the size of what it shows.

    Args:
        mask: bool (h, w).
        max_sides: number of pixel sides between foreground and background, plus a 128th of the pixels of the mask's
            box, up to which it is outlined; None: no limit. A mask of noise has as many sides as pixels.
    Returns:
        The polygons; None for a mask above the limit.
    """
    if max_sides == 0:
        return None
    x1, y1, x2, y2 = mask_bbox(mask)
    part = mask[y1:y2, x1:x2]
    if max_sides is not None:
        sides = part.size // _PIXELS_PER_SIDE
        for these in (part, part.T) if sides <= max_sides else ():
            sides += np.count_nonzero(these[1:] != these[:-1]) + these[0].sum() + these[-1].sum() if part.size else 0
        if sides > max_sides:
            return None
    return [[number + (y1 if i % 2 else x1) for i, number in enumerate(polygon)] for polygon in mask_polygons(part)]


def make_segments(text: str, masks: list[PredictedMask], max_outline_sides: int | None = None) -> list[dict[str, Any]]:
    """Convert the masks of an answer, each with the label that the text before it has.

    Args:
        text: the answer.
        masks: its masks, in order; `start` and `end` are their places in the text.
        max_outline_sides: see `outline`.
    """
    ends = [0, *(mask.end for mask in masks)]
    return [
        segment_to_dict(mask, find_label(text[end : mask.start]), max_outline_sides)
        for end, mask in zip(ends, masks, strict=False)
    ]


def find_label(text: str) -> str | None:
    """Find the label of a mask: `<ref>label</ref>` or `label:` just before it, else None.

    Args:
        text: the answer from the end of the previous mask to the start of this one.
    """
    text = text[-_LONGEST_LABEL:]
    found = _REFERENCE.search(text)
    if found:
        return found[1].strip() or None
    found = _BEFORE_COLON.search(text)
    return (_JOINING.sub("", _SENTENCE_END.split(found[1])[-1]).strip() or None) if found else None
