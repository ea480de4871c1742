"""Boundary metrics of two masks: F-measure of DAVIS, and boundary IoU.

The functions take bool arrays (h, w) of equal size, which the caller has checked, and return a number in [0, 1].
`segmentation.boundary_f` and `segmentation.boundary_iou` check them and define the metrics.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

BOUNDARY_TOLERANCE = 0.008  # share of the image diagonal; DAVIS (Perazzi et al., CVPR 2016)
BOUNDARY_WIDTH = 0.02  # share of the image diagonal; Boundary IoU (Cheng et al., CVPR 2021)
CHESSBOARD = "chessboard"


def compute_boundary_f(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None) -> float:
    """See `segmentation.boundary_f`."""
    predicted, true = _edges(prediction), _edges(target)
    counted_predicted, counted_true = without_ignored(predicted, ignore), without_ignored(true, ignore)
    if not counted_predicted.any() and not counted_true.any():
        return float(np.array_equal(without_ignored(prediction, ignore), without_ignored(target, ignore)))
    if not counted_predicted.any() or not counted_true.any():
        return 0.0
    tolerance = max(1, math.ceil(BOUNDARY_TOLERANCE * math.hypot(*target.shape)))
    precision = _share_near(counted_predicted, true, tolerance)
    recall = _share_near(counted_true, predicted, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def compute_boundary_iou(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None) -> float:
    """See `segmentation.boundary_iou`."""
    width = max(1, round(BOUNDARY_WIDTH * math.hypot(*target.shape)))
    a, b = (without_ignored(_boundary_region(mask, width), ignore) for mask in (prediction, target))
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def without_ignored(mask: np.ndarray, ignore: np.ndarray | None) -> np.ndarray:
    """The mask without the pixels of an ignored region."""
    return mask if ignore is None else mask & ~ignore


def _boundary_region(mask: np.ndarray, width: int) -> np.ndarray:
    """Foreground within `width` pixels (chessboard distance) of background, which includes the outside of the image."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    region = np.zeros_like(mask)
    if rows.size:
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # of the foreground
        inner = np.pad(mask[window], 1)
        depth = ndimage.distance_transform_cdt(inner, metric=CHESSBOARD)[1:-1, 1:-1]
        region[window] = (depth > 0) & (depth <= width)
    return region


def _edges(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the pixel to the right, below, or to the lower right: lines one pixel wide."""
    edges = np.zeros_like(mask)
    edges[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edges[:-1] |= mask[:-1] != mask[1:]
    edges[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edges


def _share_near(points: np.ndarray, others: np.ndarray, tolerance: int) -> float:
    """Share of `points` that have one of `others` within `tolerance` pixels (Euclidean)."""
    # Distances are computed near the points only, because a mask is usually much smaller than its image.
    rows, columns = np.flatnonzero(points.any(1)), np.flatnonzero(points.any(0))
    window = tuple(slice(max(0, i[0] - tolerance), i[-1] + tolerance + 1) for i in (rows, columns))
    points, others = points[window], others[window]
    if not others.any():
        return 0.0
    return float(np.mean(ndimage.distance_transform_edt(~others)[points] <= tolerance))
