"""Segmentation metrics: cIoU, gIoU, P@x, N-acc and T-acc, mIoU over classes, boundary metrics.

Contract: pairs of masks are added one at a time, and only sums are stored. Merged accumulators of several processes
give the same numbers as one. Masks are bool (h, w); masks of different sizes are an error and are never resized. If
pixels are counted already (`masks/run_lengths.py`), an `Overlap` is added instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .boundary import compute_boundary_f, compute_boundary_iou, without_ignored

PRECISION_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)  # P@x of the RefCOCO literature


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of a prediction and a target, without ignored pixels.

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
        """Count the pixels of two masks.

        Args:
            prediction, target: bool (h, w).
            ignore: bool (h, w) or None; True pixels are not counted.
        Raises:
            ValueError: another dtype, or different sizes.
        """
        prediction, target, ignore = _checked(prediction, target, ignore)
        a, b = without_ignored(prediction, ignore), without_ignored(target, ignore)
        return cls(*(int(np.count_nonzero(mask)) for mask in (a & b, a, b)))


def mask_iou(a: np.ndarray, b: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Intersection over union of two masks, in [0, 1]; 1.0 if both are empty.

    Args:
        a, b: bool (h, w).
        ignore: bool (h, w) or None; True pixels are not counted.
    Raises:
        ValueError: another dtype, or different sizes.
    """
    return Overlap.of(a, b, ignore).iou


def boundary_f(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Boundary F-measure of DAVIS (Perazzi et al., CVPR 2016), in [0, 1].

    A boundary pixel of one mask is matched if the other mask has a boundary pixel within 0.008 of the image's diagonal
    (rounded up, at least 1 pixel). F is the harmonic mean of the matched shares of both masks. The image's border is
    not a boundary. If neither mask has a boundary (empty or full masks), the result is 1.0 for equal masks, else 0.0.

    Args:
        prediction, target: bool (h, w).
        ignore: bool (h, w) or None; boundary pixels in it are not counted, but others may be matched to them.
    Raises:
        ValueError: another dtype, or different sizes.
    """
    return compute_boundary_f(*_checked(prediction, target, ignore))


def boundary_iou(prediction: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None) -> float:
    """Boundary IoU (Cheng et al., CVPR 2021), in [0, 1]: IoU of the boundary regions of both masks.

    The boundary region of a mask is its foreground within 0.02 of the image's diagonal (rounded, at least 1 pixel) of
    background. The outside of the image counts as background. 1.0 if both masks are empty.

    Args:
        prediction, target: bool (h, w).
        ignore: bool (h, w) or None; True pixels are not counted.
    Raises:
        ValueError: another dtype, or different sizes.
    """
    return compute_boundary_iou(*_checked(prediction, target, ignore))


class SegmentationMetrics:
    """Streaming accumulator over (prediction, target) pairs.

    Args:
        boundary: whether to compute `boundary_F` and `boundary_IoU`, which are by far the slowest numbers.
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
        """Add a sample.

        Args:
            prediction: bool (h, w), or None if it is missing. It is scored as an empty mask then.
            target: bool (h, w); all False (outside `ignore`) means that there is no target.
            ignore: bool (h, w) or None; True pixels are excluded from every number.
            missing: whether the prediction is missing and `prediction` replaces it.
        Raises:
            ValueError: another dtype, or different sizes. The accumulator is unchanged then.
        """
        missing = missing or prediction is None
        if prediction is None:
            prediction = np.zeros(np.shape(target), dtype=bool)
        overlap = Overlap.of(prediction, target, ignore)
        self._add(overlap, missing)
        if self.boundary:
            self._boundary_sum += compute_boundary_f(prediction, target, ignore)
            self._boundary_iou_sum += compute_boundary_iou(prediction, target, ignore)

    def update_overlap(self, overlap: Overlap, missing: bool = False) -> None:
        """Add a sample by its pixel counts.

        Args:
            overlap: the counts.
            missing: whether the prediction is missing.
        Raises:
            RuntimeError: the accumulator has boundary metrics, which need masks.
        """
        if self.boundary:
            raise RuntimeError(
                "update_overlap: got metrics with boundary=True, expected False, because boundaries need masks"
            )
        self._add(overlap, missing)

    def update_failed(self, target: int) -> None:
        """Add a sample whose answer has failed: it is wrong in every number, also if there is no target.

        Args:
            target: foreground pixels of the target, without ignored ones.
        """
        self._samples += 1
        self._missing += target > 0
        self._union += target
        self._no_target += target == 0

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
        """Add the samples of another accumulator, such as that of another process, to this one, and return this one."""
        if self.boundary != other.boundary:
            raise ValueError(f"boundary is {other.boundary} in the other metrics: expected {self.boundary}, as here")
        for name in vars(self):
            if name != "boundary":
                setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def compute(self, precision_over_targets: bool = False) -> dict[str, float | int | None]:
        """Compute all numbers; shares are in [0, 1], shares and means over no samples are None.

        `cIoU`: sum of intersections / sum of unions (1.0 if all unions are empty). `gIoU`: mean IoU, which is 1 for two
        empty masks and 0 for one. `P@x`: share of samples with IoU >= x. `N-acc`: share of samples without a target
        whose prediction is empty. `T-acc`: share of samples with a target whose prediction is not empty. `boundary_F`,
        `boundary_IoU`: means of `boundary_f`, `boundary_iou`. `samples`, `missing`: counts.

        Args:
            precision_over_targets: compute P@x over samples with a target only, as in gRefCOCO.
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
    """Streaming IoU per class, as in semantic segmentation: pixels of a class are summed over all images."""

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
        """IoU by class name; None for a class that is neither predicted nor present in any image."""
        return {label: _ratio(int(i), int(u)) for label, (i, u, _) in sorted(self._counts.items())}

    def compute(self) -> dict[str, float | int | None]:
        """`mIoU`: mean over the classes that have an IoU. `classes`: their number."""
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
