"""How well the scores of masks predict their IoU.

Only sums and the counts of a grid are stored. Merged accumulators of several processes give the same numbers as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

NUM_BINS = 10  # of the expected calibration error (Guo et al., ICML 2017)
RANK_LEVELS = 1000  # of [0, 1] to which values are rounded for the rank correlation, instead of storing all values


class CalibrationMetrics:
    """Streaming accumulator over masks with a score.

    Args:
        bins: number of bins of equal width of [0, 1], for the expected calibration error.
    """

    def __init__(self, bins: int = NUM_BINS) -> None:
        self.bins = bins
        self._masks = 0
        self._gaps = [0.0] * bins  # sum of score - IoU, by bin
        self._squares = 0.0
        self._cells: Counter[tuple[int, int]] = Counter()  # (level of the score, level of the IoU) -> number of masks

    def __len__(self) -> int:
        return self._masks

    def update(self, score: float, iou: float) -> None:
        """Add a mask.

        Args:
            score: the mask's score, in [0, 1].
            iou: its IoU with the matching true mask, in [0, 1].
        Raises:
            ValueError: a number is out of range. The accumulator is unchanged then.
        """
        for name, value in (("score", score), ("iou", iou)):
            if not 0 <= value <= 1:  # true for NaN as well
                raise ValueError(f"{name} is {value!r}: expected a number in [0, 1]")
        gap = score - iou
        self._masks += 1
        self._gaps[min(int(score * self.bins), self.bins - 1)] += gap
        self._squares += gap**2
        self._cells[round(score * RANK_LEVELS), round(iou * RANK_LEVELS)] += 1

    def merge(self, other: CalibrationMetrics) -> CalibrationMetrics:
        """Add the masks of another accumulator to this one, and return this one."""
        if self.bins != other.bins:
            raise ValueError(f"bins is {other.bins} in the other metrics: expected {self.bins}, as here")
        self._gaps = [a + b for a, b in zip(self._gaps, other._gaps, strict=True)]
        for name in ("_masks", "_squares", "_cells"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def compute(self) -> dict[str, float | int | None]:
        """Compute all numbers; they are None without masks.

        `ECE`: distance between mean score and mean IoU, averaged over bins of the score weighted by their number of
        masks (Guo et al., ICML 2017). `Brier`: mean squared difference of score and IoU, as in the Brier score, whose
        outcomes are 0 and 1. `spearman`: rank correlation in [-1, 1], of values rounded to a thousandth; None if scores
        or IoUs do not vary. `scored_masks`: number of masks.
        """
        return {
            "ECE": sum(map(abs, self._gaps)) / self._masks if self._masks else None,
            "Brier": self._squares / self._masks if self._masks else None,
            "spearman": self._rank_correlation(),
            "scored_masks": self._masks,
        }

    def _rank_correlation(self) -> float | None:
        if not self._cells:
            return None
        levels, times = np.array(list(self._cells)), np.array(list(self._cells.values()), np.float64)
        ranks = np.stack([_centred_ranks(levels[:, i], times) for i in (0, 1)])
        products = (ranks * times) @ ranks.T
        spread = float(np.sqrt(products[0, 0] * products[1, 1]))
        return float(products[0, 1]) / spread if spread else None


def _centred_ranks(levels: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Mean rank of the masks of each level, minus the mean over all masks."""
    _, which = np.unique(levels, return_inverse=True)
    count = np.bincount(which, times)
    rank = np.cumsum(count) - (count - 1) / 2
    return (rank - (count.sum() + 1) / 2)[which]


def expected_calibration_error(scores: Sequence[float], ious: Sequence[float], bins: int = NUM_BINS) -> float:
    """The `ECE` of `CalibrationMetrics`, for scores and IoUs in [0, 1], (n,) each with n >= 1."""
    error = summarize_calibration(scores, ious, bins)["ECE"]
    if error is None:
        raise ValueError("scores is empty: expected at least one")
    return error


def summarize_calibration(
    scores: Iterable[float], ious: Iterable[float], bins: int = NUM_BINS
) -> dict[str, float | int | None]:
    """All numbers of `CalibrationMetrics`, for scores and IoUs in [0, 1], (n,) each."""
    metrics = CalibrationMetrics(bins)
    for score, iou in zip(scores, ious, strict=True):
        metrics.update(float(score), float(iou))
    return metrics.compute()
