"""Which true mask a predicted one stands for.

Contract: the assignment of the largest sum of IoU; a mask too many stands for none, and has an IoU of 0. Masks may be
of any kind that an `iou` of two of them is known for. Does not know metrics' sums, files and models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .segmentation import mask_iou


def _iou(predicted: np.ndarray, true: np.ndarray) -> float:
    return mask_iou(predicted, true) if true.any() else 0.0


def matched_ious(predicted: Sequence[Any], true: Sequence[Any], iou: Callable[[Any, Any], float] = _iou) -> list[float]:
    """IoU of each predicted mask with the true one that it stands for, 0 for one that stands for none.

    Args:
        predicted, true: bool (h, w) each, or what `iou` takes.
        iou: of a predicted and a true mask; 0 for a true one without a pixel, which nothing stands for.
    """
    from scipy.optimize import linear_sum_assignment

    ious = [0.0] * len(predicted)
    if predicted and true:
        table = np.array([[iou(one, other) for other in true] for one in predicted])
        for i, j in zip(*linear_sum_assignment(table, maximize=True), strict=True):
            ious[i] = float(table[i, j])
    return ious
