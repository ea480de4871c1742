"""Boxes in the text of answers, and their accuracy at IoU levels.

Boxes are x1, y1, x2, y2 in pixels, x2 and y2 exclusive.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

BOX_LEVELS = (0.5, 0.7, 0.9)
BoxCoordinates = Sequence[float]
# Units of coordinates in answers: fractions of the image, thousandths of it (InternVL, Qwen2-VL, Qwen3-VL), or pixels
# (Qwen2.5-VL, of the image as it was resized for the model).
BOX_SCALES = ("norm1", "norm1000", "pixel")
NORMALIZED_SIDE = 1000  # side of the image in `norm1000`

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
# [x1, y1, x2, y2], also in more brackets or in {"bbox_2d": […]}, or Qwen's (x1,y1),(x2,y2).
_FOUR = re.compile(
    rf"[\[(]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[\])]|\({_NUMBER},{_NUMBER}\)\s*,?\s*\({_NUMBER},{_NUMBER}\)"
)


def boxes_in_text(
    text: str, size: tuple[int, int], scale: str = "norm1000", shown: tuple[int, int] | None = None
) -> list[tuple[float, float, float, float]]:
    """Find every box in an answer, in order.

    Args:
        text: the answer; boxes are written [x1, y1, x2, y2] or (x1, y1),(x2, y2).
        size: (h, w) of the image.
        scale: unit of the coordinates: `norm1` (fractions of the image), `norm1000` (thousandths) or `pixel`.
        shown: (h, w) of the image that the model saw, if it was resized; the unit `pixel` refers to it.
    Returns:
        Boxes in pixels of the image.
    Raises:
        ValueError: the scale is unknown.
    """
    if scale not in BOX_SCALES:
        raise ValueError(f"scale: got {scale!r}, expected one of {', '.join(BOX_SCALES)}")
    h, w = size
    shown_h, shown_w = shown or size
    x, y = {
        "norm1": (w, h),
        "norm1000": (w / NORMALIZED_SIDE, h / NORMALIZED_SIDE),
        "pixel": (w / shown_w, h / shown_h),
    }[scale]
    boxes = []
    for match in _FOUR.finditer(text):
        x1, y1, x2, y2 = (float(number) for number in match.groups() if number is not None)
        boxes.append((x1 * x, y1 * y, x2 * x, y2 * y))
    return boxes


def box_iou(a: BoxCoordinates, b: BoxCoordinates) -> float:
    """Intersection over union of two boxes, in [0, 1]; 0.0 if their union has no area."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0.0) * max(height, 0.0)
    union = _area(a) + _area(b) - intersection
    return intersection / union if union > 0 else 0.0


def _area(box: BoxCoordinates) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


class BoxMetrics:
    """Streaming accumulator over pairs of a predicted and a true box."""

    def __init__(self) -> None:
        self._samples = 0
        self._missing = 0
        self._iou_sum = 0.0
        self._right = np.zeros(len(BOX_LEVELS), dtype=np.int64)

    def __len__(self) -> int:
        return self._samples

    def update(self, prediction: BoxCoordinates | None, target: BoxCoordinates) -> None:
        """Add a sample. None is a missing prediction, which counts as wrong."""
        self.update_iou(None if prediction is None else box_iou(prediction, target))

    def update_iou(self, iou: float | None) -> None:
        """Add a sample by its IoU. None is a missing prediction, which counts as wrong."""
        self._samples += 1
        self._missing += iou is None
        self._iou_sum += iou or 0.0
        self._right += [(iou or 0.0) >= level for level in BOX_LEVELS]

    def merge(self, other: BoxMetrics) -> BoxMetrics:
        """Add the samples of another accumulator to this one, and return this one."""
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def compute(self) -> dict[str, float | int | None]:
        """Compute all numbers; shares and means are None without samples.

        `box_acc@x`: share of samples with IoU >= x. `box_IoU`: mean IoU. `samples`, `missing`: counts.
        """
        result: dict[str, float | int | None] = {
            f"box_acc@{level}": count / self._samples if self._samples else None
            for level, count in zip(BOX_LEVELS, self._right.tolist(), strict=True)
        }
        mean = self._iou_sum / self._samples if self._samples else None
        return {**result, "box_IoU": mean, "samples": self._samples, "missing": self._missing}
