"""How sure a predicted mask is: a raw score from its decoded code probabilities, and a calibration to an IoU.

Contract: `mask_certainty` turns what a mask's codes were decoded to into a raw score in [0, 1]. `Calibration` maps raw
scores to the IoU that masks of such a score had on held-out rows: monotone, fitted by isotonic regression, kept as
`calibration.json` in the mask tokenizer's folder. `fit_calibration` does it for a result file of `swift infer`. Does not
know models and ms-swift; probabilities and scores come from elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 2  # 1 calibrated another raw score
MIN_BLOCK = 10  # masks that a level of the calibration rests on at least
MIN_MASKS = 2 * MIN_BLOCK


def mask_certainty(square: np.ndarray, threshold: float = 0.5) -> float:
    """The soft IoU of mask probabilities with the mask that they become, 0 for an empty mask.

    Doubt between codes that mean nearly the same mask leaves it high, which their own probabilities do not: on the
    demo's scenes its rank correlation with the true IoU was 0.38, that of the mean code probability 0.11.

    Args:
        square: (s, s) float, mask probabilities in [0, 1], from code probabilities where there are any.
        threshold: probability from which a pixel belongs to the mask, in (0, 1).
    """
    inside = square >= threshold
    union = np.where(inside, 1, square).sum(dtype=np.float64)
    return float(square[inside].sum(dtype=np.float64) / union) if inside.any() else 0.0


@dataclass(frozen=True)
class Calibration:
    """A monotone piecewise linear map from raw scores to expected IoU, constant beyond its ends.

    Attributes:
        raw: raw scores, strictly increasing.
        iou: the IoU expected there, non-decreasing, in [0, 1].
    """

    raw: tuple[float, ...]
    iou: tuple[float, ...]

    def __post_init__(self):
        raw, iou = np.asarray(self.raw, float), np.asarray(self.iou, float)
        fits = raw.ndim == 1 and raw.shape == iou.shape and len(raw) > 0
        if not fits or not (np.diff(raw) > 0).all() or not (np.diff(iou) >= 0).all():
            raise ValueError(f"raw, iou is {self.raw!r:.80}, {self.iou!r:.80}: expected equally many, increasing")
        if not (iou.min() >= 0 and iou.max() <= 1):
            raise ValueError(f"iou has values from {iou.min()} to {iou.max()}: expected them within [0, 1]")

    def __call__(self, score: float | np.ndarray) -> Any:
        """Expected IoU of a mask with this raw score, or of each of an array."""
        value = np.interp(score, self.raw, self.iou)
        return float(value) if np.ndim(score) == 0 else value

    @classmethod
    def fit(cls, scores: Sequence[float], ious: Sequence[float]) -> Calibration:
        """Isotonic regression (Barlow et al., 1972) on groups of at least 10 masks of neighbouring scores.

        Single masks would give steps as fine as the noise; a group's mean score and mean IoU are one knot each.

        Args:
            scores: (n,) raw scores.
            ious: (n,) true IoU, in [0, 1].
        Raises:
            ValueError: fewer than 20 masks, or not equally many of both.
        """
        from scipy.optimize import isotonic_regression

        scores, ious = np.asarray(scores, float), np.asarray(ious, float)
        if scores.shape != ious.shape or scores.ndim != 1 or len(scores) < MIN_MASKS:
            raise ValueError(
                f"scores, ious have shapes {scores.shape}, {ious.shape}: expected at least {MIN_MASKS} masks with a "
                "score and an IoU each"
            )
        order = np.argsort(scores, kind="stable")
        groups = np.array_split(order, max(len(order) // max(MIN_BLOCK, round(math.sqrt(len(order)))), 2))
        raw = np.array([scores[group].mean() for group in groups])
        weights = np.array([len(group) for group in groups], float)
        level = isotonic_regression([ious[group].mean() for group in groups], weights=weights).x
        # Groups of one and the same score (a model that is always certain) are one knot.
        distinct, first = np.unique(raw, return_inverse=True)
        total = np.bincount(first, weights)
        level = np.clip(np.bincount(first, weights * level) / total, 0, 1)
        return cls(tuple(distinct.tolist()), tuple(np.maximum.accumulate(level).tolist()))

    def save(self, folder: str | Path) -> Path:
        """Write `calibration.json` into a mask tokenizer's folder and return its path."""
        path = Path(folder) / CALIBRATION_FILE
        content = {"version": FORMAT_VERSION, "raw": list(self.raw), "iou": list(self.iou)}
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, source: str | Path) -> Calibration | None:
        """The calibration beside a mask tokenizer, None if there is none.

        Args:
            source: the mask tokenizer's folder or its weights file.
        Raises:
            ValueError: a `calibration.json` that is none.
        """
        folder = Path(source)
        path = (folder.parent if folder.is_file() else folder) / CALIBRATION_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != FORMAT_VERSION:
                raise ValueError(f"version is {content['version']!r}: expected {FORMAT_VERSION}")
            return cls(tuple(map(float, content["raw"])), tuple(map(float, content["iou"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: is no calibration ({error}): expected one that `himtok calibrate` wrote"
            ) from error
