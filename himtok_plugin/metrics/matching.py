"""Matching of predicted masks to true masks, one to one, so that the sum of their IoUs is largest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .segmentation import mask_iou


def _iou(predicted: np.ndarray, true: np.ndarray) -> float:
    return mask_iou(predicted, true) if true.any() else 0.0


def matched_ious(predicted: Sequence[Any], true: Sequence[Any], iou: Callable[[Any, Any], float] = _iou) -> list[float]:
    """IoU of each predicted mask with the true mask that it is matched to; 0 for unmatched masks.

    Args:
        predicted, true: masks, bool (h, w), or other arguments of `iou`.
        iou: IoU of a predicted and a true mask. It must be 0 for empty true masks, which match nothing.
    """
    from scipy.optimize import linear_sum_assignment

    ious = [0.0] * len(predicted)
    if predicted and true:
        table = np.array([[iou(one, other) for other in true] for one in predicted])
        for i, j in zip(*linear_sum_assignment(table, maximize=True), strict=True):
            ious[i] = float(table[i, j])
    return ious
