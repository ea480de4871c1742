"""YOLO's segmentation labels: a text file per image, a line per object, `class x1 y1 x2 y2 …` in shares of the image.

Contract: an object is one polygon. The parts of one that has several, or holes, are joined by bridges without width, as
ultralytics joins them. The format has neither scores nor expressions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import yaml

from .annotations import ExportImage
from .outlines import DEFAULT_TOLERANCE, join_polygons, outline_mask

_DIGITS = 6  # a hundredth of a pixel in an image of ten thousand


def build_yolo_labels(image: ExportImage, classes: Mapping[str, int], tolerance: float = DEFAULT_TOLERANCE) -> str:
    """Build the text file of an image.

    Args:
        image: the image.
        classes: label -> number of the class.
        tolerance: of polygons, see `outlines.outline_mask`.
    Returns:
        A line per object; empty for an image without any.
    """
    h, w = image.size
    lines = []
    for each in image.drawn:
        points = np.reshape(join_polygons(outline_mask(each.mask, tolerance)), (-1, 2)) / (w, h)
        numbers = (f"{number:.{_DIGITS}f}".rstrip("0").rstrip(".") for number in points.ravel().tolist())
        lines.append(f"{classes[each.label]} {' '.join(numbers)}\n")
    return "".join(lines)


def build_yolo_yaml(labels: Sequence[str]) -> str:
    """Build `data.yaml`. Without `path`, its folder is the dataset's, wherever that is moved."""
    content = {"train": "images", "val": "images", "names": dict(enumerate(labels))}
    note = "# `val` is the same images: ultralytics asks for one. Set it to held-out images before you train.\n"
    return note + yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
