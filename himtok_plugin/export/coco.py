"""COCO-JSON, as pycocotools and most tools read it.

Contract: ids count from 1. Masks are RLE and exact, holes and parts included; `--shapes polygons` gives polygons for
tools that edit those only. `score` is the field of COCO's result format; `expression` is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from himtok_plugin import __version__
from himtok_plugin.masks import mask_bbox, to_rle

from .annotations import MASKS, ExportImage, ExportObject, list_labels, round_score
from .outlines import DEFAULT_TOLERANCE, outline_mask


def build_coco(
    images: Iterable[ExportImage],
    shapes: str = MASKS,
    tolerance: float = DEFAULT_TOLERANCE,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Build the content of a COCO-JSON file.

    Args:
        images: each once; a generator is read once if `labels` are given.
        shapes: `masks` (RLE) or `polygons`.
        tolerance: of polygons, see `outlines.outline_mask`.
        labels: the categories in their order; by default those of the objects.
    Returns:
        {"info", "licenses", "images", "annotations", "categories"}, ready for JSON.
    """
    images = images if labels is not None else list(images)
    names = list_labels(images) if labels is None else list(labels)
    ids = {name: number for number, name in enumerate(names, 1)}
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images, 1):
        h, w = image.size
        entries.append({"id": image_id, "file_name": image.name, "height": h, "width": w})
        for each in image.drawn:
            annotation = build_annotation(each, shapes, tolerance)
            own = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[each.label]}
            annotations.append(own | annotation)
    return {
        "info": {"description": "Predicted masks, to be corrected", "version": f"himtok_plugin {__version__}"},
        "licenses": [],
        "images": entries,
        "annotations": annotations,
        "categories": [{"id": number, "name": name, "supercategory": ""} for name, number in ids.items()],
    }


def build_annotation(each: ExportObject, shapes: str, tolerance: float) -> dict[str, Any]:
    """Build the part of an annotation that depends on its object only; bbox is [x, y, width, height]."""
    x1, y1, x2, y2 = mask_bbox(each.mask)
    annotation: dict[str, Any] = {
        "segmentation": to_rle(each.mask) if shapes == MASKS else outline_mask(each.mask, tolerance),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(each.mask.sum()),
        "iscrowd": 0,
    }
    if each.score is not None:
        annotation["score"] = round_score(each.score)
    if each.expression is not None:
        annotation["expression"] = each.expression
    return annotation
