"""Segmentation metrics as small accumulators: cIoU, gIoU, precision at IoU, no-target accuracy, boundary F.

Purpose: one definition of each number, for training evaluation, `himtok eval` and benchmarks alike.
Contract: masks go in one pair at a time, a few sums are kept (constant memory), accumulators of several processes merge
to what one would have given. Masks are bool (h, w); another size than the target's is an error, never a resize.
This module does not know where masks come from: no files, text, models or datasets.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

PRECISION_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # P@x of the RefCOCO literature
BOUNDARY_TOLERANCE = 0.008  # of the image diagonal; DAVIS (Perazzi et al., CVPR 2016)


def mask_iou(a: np.ndarray, b: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Intersection over union of two masks, in [0, 1]; 1.0 if both are empty.

    Args:
        a, b: bool (h, w).
        ignore: bool (h, w) or None; True pixels count for neither intersection nor union.
    Raises:
        ValueError: another dtype, or sizes that differ.
    """
    intersection, union = _overlap(*_checked(a, b, ignore))
    return intersection / union if union else 1.0


def boundary_f(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Boundary F-measure of DAVIS (Perazzi et al., CVPR 2016), in [0, 1].

    Boundary pixels of one mask count as found if a boundary pixel of the other lies within 0.008 of the image's
    diagonal (rounded up, at least 1 pixel); F is the harmonic mean of the found shares. The image's border is no
    boundary. If neither mask has a boundary (empty, or filling the image) the result is 1.0 for equal masks, else 0.0.

    Args:
        prediction, target: bool (h, w).
        ignore: bool (h, w) or None; boundary pixels in it are not counted, but others may be matched to them.
    Raises:
        ValueError: another dtype, or sizes that differ.
    """
    return _boundary_f(*_checked(prediction, target, ignore))


class SegmentationMetrics:
    """Streaming accumulator over (prediction, target) pairs.

    Args:
        boundary: also compute `boundary_F`, by far the slowest of the numbers; its key is left out if False.
    """

    def __init__(self, boundary: bool = True) -> None:
        self.boundary = boundary
        self._samples = 0
        self._missing = 0
        self._intersection = 0
        self._union = 0
        self._iou_sum = 0.0
        self._boundary_sum = 0.0
        self._precise = np.zeros(len(PRECISION_LEVELS), dtype=np.int64)
        self._no_target = 0
        self._no_target_right = 0
        self._target_answered = 0

    def __len__(self) -> int:
        return self._samples

    def update(self, prediction: np.ndarray | None, target: np.ndarray, ignore: np.ndarray | None = None) -> None:
        """Add one sample.

        Args:
            prediction: bool (h, w), or None for a missing answer: scored as an empty mask and counted in `missing`.
            target: bool (h, w); all False (outside `ignore`) means that there is no target.
            ignore: bool (h, w) or None; True pixels are left out of every number.
        Raises:
            ValueError: another dtype, or sizes that differ. The accumulator is unchanged then.
        """
        missing = prediction is None
        if missing:
            prediction = np.zeros(np.shape(target), dtype=bool)
        prediction, target, ignore = _checked(prediction, target, ignore)
        intersection, union = _overlap(prediction, target, ignore)
        iou = intersection / union if union else 1.0
        answered, has_target = (bool(np.any(_counted(mask, ignore))) for mask in (prediction, target))

        self._samples += 1
        self._missing += missing
        self._intersection += intersection
        self._union += union
        self._iou_sum += iou
        self._precise += [iou >= level for level in PRECISION_LEVELS]
        self._no_target += not has_target
        self._no_target_right += not has_target and not answered
        self._target_answered += has_target and answered
        if self.boundary:
            self._boundary_sum += _boundary_f(prediction, target, ignore)

    def merge(self, other: SegmentationMetrics) -> SegmentationMetrics:
        """Add the samples of another accumulator (of another process, say) to this one, and return this one."""
        if self.boundary != other.boundary:
            raise ValueError(f"boundary is {other.boundary} in the other metrics: expected {self.boundary}, as here")
        for name in vars(self):
            if name != "boundary":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def compute(self) -> dict[str, float | int | None]:
        """All numbers so far; a share or mean over no samples is None, shares are in [0, 1].

        `cIoU`: sum of intersections / sum of unions (1.0 if every union is empty). `gIoU`: mean IoU, where
        empty/empty is 1 and empty/non-empty 0. `P@x`: share of samples with IoU >= x. `N-acc`: share of samples without
        a target that are predicted empty. `T-acc`: share of samples with a target that are not predicted empty.
        `boundary_F`: mean of `boundary_f`. `samples`, `missing`: counts.
        """
        with_target = self._samples - self._no_target
        union = _ratio(self._intersection, self._union)
        result: dict[str, float | int | None] = {
            "cIoU": 1.0 if union is None and self._samples else union,
            "gIoU": _ratio(self._iou_sum, self._samples),
        }
        for level, count in zip(PRECISION_LEVELS, self._precise.tolist(), strict=True):
            result[f"P@{level}"] = _ratio(count, self._samples)
        result["N-acc"] = _ratio(self._no_target_right, self._no_target)
        result["T-acc"] = _ratio(self._target_answered, with_target)
        if self.boundary:
            result["boundary_F"] = _ratio(self._boundary_sum, self._samples)
        return {**result, "samples": self._samples, "missing": self._missing}


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _checked(
    prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    for name, mask in (("target", target), ("prediction", prediction), ("ignore", ignore)):
        if mask is None and name == "ignore":
            continue
        if not isinstance(mask, np.ndarray) or mask.dtype != bool or mask.ndim != 2:
            found = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise ValueError(f"{name} is {found}: expected a bool array (h, w)")
        if mask.shape != target.shape:
            raise ValueError(f"{name} has size {mask.shape}: expected {target.shape}, the size of the target")
    return prediction, target, ignore


def _counted(mask: np.ndarray, ignore: np.ndarray | None) -> np.ndarray:
    return mask if ignore is None else mask & ~ignore


def _overlap(a: np.ndarray, b: np.ndarray, ignore: np.ndarray | None) -> tuple[int, int]:
    a, b = _counted(a, ignore), _counted(b, ignore)
    intersection = int(np.count_nonzero(a & b))
    return intersection, int(np.count_nonzero(a)) + int(np.count_nonzero(b)) - intersection


def _boundary_f(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None) -> float:
    edges, wanted = _boundary(prediction), _boundary(target)
    counted_edges, counted_wanted = _counted(edges, ignore), _counted(wanted, ignore)
    if not counted_edges.any() and not counted_wanted.any():
        return float(np.array_equal(_counted(prediction, ignore), _counted(target, ignore)))
    if not counted_edges.any() or not counted_wanted.any():
        return 0.0
    tolerance = max(1, math.ceil(BOUNDARY_TOLERANCE * math.hypot(*target.shape)))
    precision = _share_near(counted_edges, wanted, tolerance)
    recall = _share_near(counted_wanted, edges, tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
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
