"""A predicted mask as clients get it: everything about one segment in one JSON object.

Contract: `make_segments` turns an answer's masks into such objects, in order of appearance. Does not know servers.
"""

from __future__ import annotations

import re
from typing import Any

from himtok_plugin.masks.polygons import mask_polygons
from himtok_plugin.masks.sources import mask_bbox, to_rle

from .predictor import PredictedMask

_LONGEST_LABEL = 200  # characters; also bounds the search
# What is referred to, as bases that know grounding write it (InternVL, Qwen), just before the mask.
_REFERENCE = re.compile(r"(?:<ref>|<\|object_ref_start\|>)([^<>]+)(?:</ref>|<\|object_ref_end\|>)\s*:?\s*$")
_BEFORE_COLON = re.compile(r"([^\n:<>]+):\s*$")  # "left: <mask>, right: <mask>"
_SENTENCE_END = re.compile(r"[.;!?]\s+")
_JOINING = re.compile(r"^(?:[\s,;.]|and\s)+")


def segment_to_dict(mask: PredictedMask, label: str | None = None) -> dict[str, Any]:
    """JSON form of one segment.

    Returns:
        size [h, w] and counts (COCO RLE), polygon (`outlines.mask_polygons`), bbox [x1, y1, x2, y2] in pixels, x2 and
        y2 exclusive, zeros for an empty mask, score (certainty or expected IoU, or None), codes, label, complete.
    """
    return {
        **to_rle(mask.mask),
        "polygon": mask_polygons(mask.mask),
        "bbox": list(mask_bbox(mask.mask)),
        "score": mask.score,
        "codes": mask.codes,
        "label": label,
        "complete": mask.complete,
    }


def make_segments(text: str, masks: list[PredictedMask]) -> list[dict[str, Any]]:
    """Segments of an answer.

    Args:
        text: the answer.
        masks: its masks, with their places in it.
    """
    ends = [0, *(mask.end for mask in masks)]
    return [segment_to_dict(mask, find_label(text[end : mask.start])) for end, mask in zip(ends, masks, strict=False)]


def find_label(text: str) -> str | None:
    """What the text says the mask after it shows: `<ref>label</ref>` or `label:` at its end, None where neither is.

    Args:
        text: an answer from the end of the mask before to the start of this one.
    """
    text = text[-_LONGEST_LABEL:]
    found = _REFERENCE.search(text)
    if found:
        return found[1].strip() or None
    found = _BEFORE_COLON.search(text)
    return (_JOINING.sub("", _SENTENCE_END.split(found[1])[-1]).strip() or None) if found else None
