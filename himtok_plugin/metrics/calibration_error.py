"""How well scores of masks tell their IoU, as a small accumulator.

Contract: pairs of a score and a true IoU go in, a few sums and the counts of a grid are kept, accumulators of several
processes merge to what one would have given. Does not know where scores come from, nor masks, files and models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

NUM_BINS = 10  # of the expected calibration error, as in Guo et al., ICML 2017
RANK_LEVELS = 1000  # values closer than this share of [0, 1] tie in the rank correlation: ranks need all values, else


class CalibrationMetrics:
    """Streaming accumulator over masks with a score.

    Args:
        bins: of [0, 1], of equal width, for the expected calibration error.
    """

    def __init__(self, bins: int = NUM_BINS) -> None:
        self.bins = bins
        self._masks = 0
        self._gaps = [0.0] * bins  # of each bin, the sum of its masks' score - IoU
        self._squares = 0.0
        self._cells: Counter[tuple[int, int]] = Counter()  # (level of the score, level of the IoU) -> masks

    def __len__(self) -> int:
        return self._masks

    def update(self, score: float, iou: float) -> None:
        """Add one mask.

        Args:
            score: of the mask, in [0, 1].
            iou: with the true mask that it stands for, in [0, 1].
        Raises:
            ValueError: a number outside. The accumulator is unchanged then.
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
        """All numbers so far; None over no masks.

        `ECE`: distance between mean score and mean IoU over bins of the score, weighted by their masks (Guo et al.,
        ICML 2017). `Brier`: mean squared distance of score and IoU, as Brier's score has it for outcomes of 0 and 1.
        `spearman`: rank correlation in [-1, 1], to a resolution of a thousandth; None where either does not vary.
        `scored_masks`: count.
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
    """Mean rank of each level's masks, the mean over all masks subtracted."""
    _, which = np.unique(levels, return_inverse=True)
    count = np.bincount(which, times)
    rank = np.cumsum(count) - (count - 1) / 2
    return (rank - (count.sum() + 1) / 2)[which]


def expected_calibration_error(scores: Sequence[float], ious: Sequence[float], bins: int = NUM_BINS) -> float:
    """Mean distance between score and IoU over bins of equal width, weighted by their masks (Guo et al., ICML 2017).

    Args:
        scores, ious: (n,) each, in [0, 1], n >= 1.
        bins: number of bins of [0, 1].
    """
    return calibration_summary(scores, ious, bins)["ECE"]


def calibration_summary(scores: Any, ious: Any, bins: int = NUM_BINS) -> dict[str, float | int | None]:
    metrics = CalibrationMetrics(bins)
    for score, iou in zip(scores, ious, strict=True):
        metrics.update(float(score), float(iou))
    return metrics.compute()
