"""LabelMe JSON, one file per image.

Contract: an object is one polygon, or several with one `group_id`; or a mask, which keeps holes and is exact. `score`
is a further field, which labelme keeps and X-AnyLabeling shows. The expression is the shape's description.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from .annotations import MASKS, POLYGONS, ExportImage, ExportObject, crop_mask, round_score
from .outlines import DEFAULT_TOLERANCE, outline_mask

LABELME_VERSION = "5.5.0"  # the format has not changed since; labelme warns about files of another main version


def build_label_me(
    image: ExportImage, shapes: str = POLYGONS, tolerance: float = DEFAULT_TOLERANCE, image_path: str | None = None
) -> dict[str, Any]:
    """Build the content of the JSON file of an image.

    Args:
        image: the image.
        shapes: `polygons` or `masks`.
        tolerance: of polygons, see `outlines.outline_mask`.
        image_path: of the image, from the JSON file's folder; by default its name.
    """
    h, w = image.size
    drawn: list[dict[str, Any]] = []
    for group, each in enumerate(image.drawn, 1):
        drawn += _mask_shapes(each) if shapes == MASKS else _polygon_shapes(each, group, tolerance)
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": drawn,
        "imagePath": image.name if image_path is None else image_path,
        "imageData": None,
        "imageHeight": h,
        "imageWidth": w,
    }


def _polygon_shapes(each: ExportObject, group: int, tolerance: float) -> list[dict[str, Any]]:
    polygons = outline_mask(each.mask, tolerance)
    own_group = group if len(polygons) > 1 else None
    return [
        _shape(each, "polygon", np.reshape(polygon, (-1, 2)).tolist(), own_group, mask=None) for polygon in polygons
    ]


def _mask_shapes(each: ExportObject) -> list[dict[str, Any]]:
    """The mask within its box as PNG; both corners of the box are pixels of it."""
    part, (x1, y1, x2, y2) = crop_mask(each.mask)
    file = io.BytesIO()
    Image.fromarray(part.astype(np.uint8)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return [_shape(each, "mask", [[x1, y1], [x2 - 1, y2 - 1]], None, mask=data)]


def _shape(
    each: ExportObject, kind: str, points: list[list[float]], group: int | None, mask: str | None
) -> dict[str, Any]:
    shape: dict[str, Any] = {
        "label": each.label,
        "points": points,
        "group_id": group,
        "description": each.expression or "",
        "shape_type": kind,
        "flags": {},
        "mask": mask,
    }
    return shape if each.score is None else {**shape, "score": round_score(each.score)}
