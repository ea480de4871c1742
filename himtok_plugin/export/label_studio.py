"""Label Studio's tasks with predictions, and its labelling configuration.

Contract: a task per image, with one prediction whose results are brush masks, exact with holes, or polygons, in shares
of the image times 100. A prediction's score is the mean of its objects' scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np

from himtok_plugin import __version__
from himtok_plugin.masks.brush_rle import encode_brush
from himtok_plugin.masks.drawing import COLORS

from .annotations import MASKS, ExportImage, ExportObject, round_score
from .outlines import DEFAULT_TOLERANCE, join_polygons, outline_mask

TAG, IMAGE_TAG = "label", "image"  # names in the configuration
LOCAL_FILES = "/data/local-files/?d="  # Label Studio's address of files below its document root


def build_label_studio_task(
    image: ExportImage, shapes: str = MASKS, tolerance: float = DEFAULT_TOLERANCE, path: str | None = None
) -> dict[str, Any]:
    """Build the task of an image.

    Args:
        image: the image.
        shapes: `masks` or `polygons`.
        tolerance: of polygons, see `outlines.outline_mask`.
        path: of the image below Label Studio's document root, with slashes; by default below `images` there.
    """
    results = [
        {"id": f"object{number}", **_build_result(each, image.size, shapes, tolerance)}
        for number, each in enumerate(image.drawn, 1)
    ]
    scores = [each.score for each in image.drawn if each.score is not None]
    prediction: dict[str, Any] = {"model_version": f"himtok_plugin {__version__}", "result": results}
    if scores:
        prediction["score"] = round_score(float(np.mean(scores)))
    where = LOCAL_FILES + quote(f"images/{image.name}" if path is None else path)
    return {"data": {IMAGE_TAG: where}, "predictions": [prediction]}


def build_label_studio_config(labels: Sequence[str], shapes: str = MASKS) -> str:
    """Build the labelling configuration: the image, and brush labels or polygon labels."""
    kind = "BrushLabels" if shapes == MASKS else "PolygonLabels"
    colors = ("#{:02x}{:02x}{:02x}".format(*COLORS[i % len(COLORS)]) for i in range(len(labels)))
    listed = [
        f"    <Label value={quoteattr(label)} background={quoteattr(color)}/>"
        for label, color in zip(labels, colors, strict=True)
    ]
    return "\n".join(
        [
            "<View>",
            f'  <Image name="{IMAGE_TAG}" value="${IMAGE_TAG}" zoom="true"/>',
            f'  <{kind} name="{TAG}" toName="{IMAGE_TAG}">',
            *listed,
            f"  </{kind}>",
            "</View>",
            "",
        ]
    )


def _build_result(each: ExportObject, size: tuple[int, int], shapes: str, tolerance: float) -> dict[str, Any]:
    h, w = size
    result: dict[str, Any] = {
        "from_name": TAG,
        "to_name": IMAGE_TAG,
        "original_width": w,
        "original_height": h,
        "image_rotation": 0,
    }
    if each.score is not None:
        result["score"] = round_score(each.score)
    if each.expression is not None:
        result["meta"] = {"text": [each.expression]}
    if shapes == MASKS:
        brush = {"format": "rle", "rle": encode_brush(each.mask), "brushlabels": [each.label]}
        return {**result, "type": "brushlabels", "value": brush}
    # Label Studio has no groups of regions, so an object is one polygon.
    polygon = join_polygons(outline_mask(each.mask, tolerance))
    points = (np.reshape(polygon, (-1, 2)) * (100 / w, 100 / h)).round(5).tolist()
    value = {"points": points, "closed": True, "polygonlabels": [each.label]}
    return {**result, "type": "polygonlabels", "value": value}
