"""How well the boundary of a mask is met: F-measure of DAVIS, and boundary IoU.

Contract: two masks in, one number in [0, 1] out; masks are bool (h, w) of one size, which whoever calls has checked.
Does not know accumulators and files.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

BOUNDARY_TOLERANCE = 0.008  # of the image diagonal; DAVIS (Perazzi et al., CVPR 2016)
BOUNDARY_WIDTH = 0.02  # of the image diagonal; Boundary IoU (Cheng et al., CVPR 2021)
CHESSBOARD = "chessboard"


def boundary_f_of(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None) -> float:
    """See `metrics.boundary_f`."""
    edges, wanted = _edge(prediction), _edge(target)
    counted_edges, counted_wanted = _counted(edges, ignore), _counted(wanted, ignore)
    if not counted_edges.any() and not counted_wanted.any():
        return float(np.array_equal(_counted(prediction, ignore), _counted(target, ignore)))
    if not counted_edges.any() or not counted_wanted.any():
        return 0.0
    tolerance = max(1, math.ceil(BOUNDARY_TOLERANCE * math.hypot(*target.shape)))
    precision = _share_near(counted_edges, wanted, tolerance)
    recall = _share_near(counted_wanted, edges, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary_iou_of(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None) -> float:
    """See `metrics.boundary_iou`."""
    width = max(1, round(BOUNDARY_WIDTH * math.hypot(*target.shape)))
    a, b = (_counted(_rim(mask, width), ignore) for mask in (prediction, target))
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def _counted(mask: np.ndarray, ignore: np.ndarray | None) -> np.ndarray:
    return mask if ignore is None else mask & ~ignore


def _rim(mask: np.ndarray, width: int) -> np.ndarray:
    """Foreground within `width` pixels of background, diagonal steps counting 1; beyond the image is background."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    rim = np.zeros_like(mask)
    if rows.size:
        window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # around it, all is background
        inner = np.pad(mask[window], 1)
        depth = ndimage.distance_transform_cdt(inner, metric=CHESSBOARD)[1:-1, 1:-1]
        rim[window] = (depth > 0) & (depth <= width)
    return rim


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from the one to the right, below, or right below: a line one pixel wide."""
    edge = np.zeros_like(mask)
    edge[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edge[:-1] |= mask[:-1] != mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] != mask[1:, 1:]
    return edge


def _share_near(points: np.ndarray, others: np.ndarray, tolerance: int) -> float:
    """Share of `points` that have one of `others` within `tolerance` pixels (Euclidean)."""
    # Distances are wanted near the points only, and a mask is mostly much smaller than its image.
    rows, columns = np.flatnonzero(points.any(1)), np.flatnonzero(points.any(0))
    window = tuple(slice(max(0, i[0] - tolerance), i[-1] + tolerance + 1) for i in (rows, columns))
    points, others = points[window], others[window]
    if not others.any():
        return 0.0
    return float(np.mean(ndimage.distance_transform_edt(~others)[points] <= tolerance))
