"""Segmentation metrics as small accumulators: cIoU, gIoU, P@x, N-acc and T-acc, classes, boundaries, calibration.

Purpose: one definition of each number, for training evaluation, `himtok eval` and benchmarks alike.
Contract: masks go in one pair at a time, a few sums are kept (constant memory), accumulators of several processes merge
to what one would have given. Masks are bool (h, w); another size than the target's is an error, never a resize. Who has
counted pixels already (`run_lengths.py`) hands in an `Overlap`.
This module does not know where masks come from: no files, text, models or datasets.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .boundary import boundary_f_of, boundary_iou_of
from .calibration_error import CalibrationMetrics as CalibrationMetrics

PRECISION_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # P@x of the RefCOCO literature


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of one (prediction, target) pair; pixels that are to be ignored are in none of them.

    Attributes:
        intersection: foreground in both.
        predicted, target: foreground of each.
    """

    intersection: int
    predicted: int
    target: int

    @property
    def union(self) -> int:
        return self.predicted + self.target - self.intersection

    @property
    def iou(self) -> float:
        """Intersection over union; 1.0 if both are empty, 0.0 if one is."""
        return self.intersection / self.union if self.union else 1.0

    @classmethod
    def of(cls, prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None) -> Overlap:
        """Count two masks.

        Args:
            prediction, target: bool (h, w).
            ignore: bool (h, w) or None; True pixels are not counted.
        Raises:
            ValueError: another dtype, or sizes that differ.
        """
        prediction, target, ignore = _checked(prediction, target, ignore)
        a, b = _counted(prediction, ignore), _counted(target, ignore)
        return cls(*(int(np.count_nonzero(mask)) for mask in (a & b, a, b)))


def mask_iou(a: np.ndarray, b: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Intersection over union of two masks, in [0, 1]; 1.0 if both are empty.

    Args:
        a, b: bool (h, w).
        ignore: bool (h, w) or None; True pixels count for neither intersection nor union.
    Raises:
        ValueError: another dtype, or sizes that differ.
    """
    return Overlap.of(a, b, ignore).iou


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
    return boundary_f_of(*_checked(prediction, target, ignore))


def boundary_iou(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Boundary IoU (Cheng et al., CVPR 2021), in [0, 1]: IoU of the rims of both masks.

    A rim is the foreground within 0.02 of the image's diagonal (rounded, at least 1 pixel) of background, where the
    image's border is background too. 1.0 if both masks are empty.

    Args:
        prediction, target: bool (h, w).
        ignore: bool (h, w) or None; True pixels count for neither intersection nor union.
    Raises:
        ValueError: another dtype, or sizes that differ.
    """
    return boundary_iou_of(*_checked(prediction, target, ignore))


class SegmentationMetrics:
    """Streaming accumulator over (prediction, target) pairs.

    Args:
        boundary: also compute `boundary_F` and `boundary_IoU`, by far the slowest of the numbers; their keys are left
            out if False.
    """

    def __init__(self, boundary: bool = True) -> None:
        self.boundary = boundary
        self._samples = 0
        self._missing = 0
        self._intersection = 0
        self._union = 0
        self._iou_sum = 0.0
        self._boundary_sum = 0.0
        self._boundary_iou_sum = 0.0
        self._precise = np.zeros(len(PRECISION_LEVELS), dtype=np.int64)
        self._precise_with_target = np.zeros(len(PRECISION_LEVELS), dtype=np.int64)
        self._no_target = 0
        self._no_target_right = 0
        self._target_answered = 0

    def __len__(self) -> int:
        return self._samples

    def update(
        self,
        prediction: np.ndarray | None,
        target: np.ndarray,
        ignore: np.ndarray | None = None,
        missing: bool = False,
    ) -> None:
        """Add one sample.

        Args:
            prediction: bool (h, w), or None for a missing answer: scored as an empty mask and counted in `missing`.
            target: bool (h, w); all False (outside `ignore`) means that there is no target.
            ignore: bool (h, w) or None; True pixels are left out of every number.
            missing: whether there was no answer, for which `prediction` stands.
        Raises:
            ValueError: another dtype, or sizes that differ. The accumulator is unchanged then.
        """
        missing = missing or prediction is None
        if prediction is None:
            prediction = np.zeros(np.shape(target), dtype=bool)
        overlap = Overlap.of(prediction, target, ignore)
        self._add(overlap, missing)
        if self.boundary:
            self._boundary_sum += boundary_f_of(prediction, target, ignore)
            self._boundary_iou_sum += boundary_iou_of(prediction, target, ignore)

    def update_overlap(self, overlap: Overlap, missing: bool = False) -> None:
        """Add one sample whose pixels are counted already.

        Args:
            overlap: its counts.
            missing: whether there was no answer.
        Raises:
            RuntimeError: boundaries are asked for, which counts do not tell.
        """
        if self.boundary:
            raise RuntimeError(
                "update_overlap: got metrics with boundary=True, expected False: counts have no boundary"
            )
        self._add(overlap, missing)

    def _add(self, overlap: Overlap, missing: bool) -> None:
        precise = np.array([overlap.iou >= level for level in PRECISION_LEVELS])
        self._samples += 1
        self._missing += missing
        self._intersection += overlap.intersection
        self._union += overlap.union
        self._iou_sum += overlap.iou
        self._precise += precise
        if overlap.target:
            self._precise_with_target += precise
            self._target_answered += overlap.predicted > 0
        else:
            self._no_target += 1
            self._no_target_right += overlap.predicted == 0

    def merge(self, other: SegmentationMetrics) -> SegmentationMetrics:
        """Add the samples of another accumulator (of another process, say) to this one, and return this one."""
        if self.boundary != other.boundary:
            raise ValueError(f"boundary is {other.boundary} in the other metrics: expected {self.boundary}, as here")
        for name in vars(self):
            if name != "boundary":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def compute(self, precision_over_targets: bool = False) -> dict[str, float | int | None]:
        """All numbers so far; a share or mean over no samples is None, shares are in [0, 1].

        `cIoU`: sum of intersections / sum of unions (1.0 if every union is empty). `gIoU`: mean IoU, where
        empty/empty is 1 and empty/non-empty 0. `P@x`: share of samples with IoU >= x. `N-acc`: share of samples without
        a target that are predicted empty. `T-acc`: share of samples with a target that are not predicted empty.
        `boundary_F`, `boundary_IoU`: means of `boundary_f`, `boundary_iou`. `samples`, `missing`: counts.

        Args:
            precision_over_targets: P@x over samples with a target only, as gRefCOCO has it.
        """
        with_target = self._samples - self._no_target
        union = _ratio(self._intersection, self._union)
        result: dict[str, float | int | None] = {
            "cIoU": 1.0 if union is None and self._samples else union,
            "gIoU": _ratio(self._iou_sum, self._samples),
        }
        precise = self._precise_with_target if precision_over_targets else self._precise
        for level, count in zip(PRECISION_LEVELS, precise.tolist(), strict=True):
            result[f"P@{level}"] = _ratio(count, with_target if precision_over_targets else self._samples)
        result["N-acc"] = _ratio(self._no_target_right, self._no_target)
        result["T-acc"] = _ratio(self._target_answered, with_target)
        if self.boundary:
            result["boundary_F"] = _ratio(self._boundary_sum, self._samples)
            result["boundary_IoU"] = _ratio(self._boundary_iou_sum, self._samples)
        return {**result, "samples": self._samples, "missing": self._missing}


class ClassMetrics:
    """Streaming IoU per class, as semantic segmentation has it: a class's pixels are counted over all images."""

    def __init__(self) -> None:
        self._counts: dict[str, np.ndarray] = {}  # class -> intersection, union, samples

    def update(self, label: str, overlap: Overlap) -> None:
        """Add the pixels of one class in one image."""
        counts = self._counts.setdefault(label, np.zeros(3, dtype=np.int64))
        counts += (overlap.intersection, overlap.union, 1)

    def merge(self, other: ClassMetrics) -> ClassMetrics:
        """Add the samples of another accumulator to this one, and return this one."""
        for label, counts in other._counts.items():
            self._counts[label] = self._counts.get(label, 0) + counts
        return self

    def __len__(self) -> int:
        """Number of classes."""
        return len(self._counts)

    def per_class(self) -> dict[str, float | None]:
        """IoU of each class, by name; None for one that is neither predicted nor there in any image."""
        return {label: _ratio(int(i), int(u)) for label, (i, u, _) in sorted(self._counts.items())}

    def compute(self) -> dict[str, float | int | None]:
        """`mIoU`: mean over the classes that have an IoU; `classes`: their number."""
        ious = [iou for iou in self.per_class().values() if iou is not None]
        return {"mIoU": float(np.mean(ious)) if ious else None, "classes": len(ious)}


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
