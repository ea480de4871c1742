"""Confidence of predicted masks: a raw score from the decoded mask probabilities, and its calibration to an IoU.

Contract: `mask_certainty` computes the raw score, in [0, 1]. `Calibration` maps raw scores to the IoU that masks with
that score had on held-out samples. The map is monotone, fitted by isotonic regression and stored as `calibration.json`
in the mask tokenizer's folder. `evaluation.calibration_fit` fits one on a result file of `swift infer`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from himtok_plugin.files.text import read_text

CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 2  # 1 calibrated another raw score
MIN_GROUP = 10  # fewest masks whose mean score and mean IoU become one knot of the map
MIN_MASKS = 2 * MIN_GROUP


def mask_certainty(square: np.ndarray, threshold: float = 0.5) -> float:
    """The soft IoU between mask probabilities and the thresholded mask; 0 for an empty mask.

    The score stays high when the LMM hesitates between codes that decode to nearly the same mask; the mean probability
    of the codes does not. On the demo's scenes its rank correlation with the true IoU was 0.38, that of the mean code
    probability 0.11.

    Args:
        square: (s, s) float, mask probabilities in [0, 1], decoded from code probabilities if they were recorded.
        threshold: probability from which a pixel belongs to the mask, in (0, 1).
    Returns:
        Raw score in [0, 1].
    """
    inside = square >= threshold
    union = np.where(inside, 1, square).sum(dtype=np.float64)
    return float(square[inside].sum(dtype=np.float64) / union) if inside.any() else 0.0


@dataclass(frozen=True)
class Calibration:
    """A monotone, piecewise linear map from raw scores to expected IoU; constant outside its knots.

    Attributes:
        raw: raw scores, strictly increasing.
        iou: the IoU expected at these scores, non-decreasing, in [0, 1].
    Raises:
        ValueError: the knots are not an increasing map to [0, 1].
    """

    raw: tuple[float, ...]
    iou: tuple[float, ...]

    def __post_init__(self) -> None:
        raw, iou = np.asarray(self.raw, float), np.asarray(self.iou, float)
        fits = raw.ndim == 1 and raw.shape == iou.shape and len(raw) > 0
        if not fits or not (np.diff(raw) > 0).all() or not (np.diff(iou) >= 0).all():
            raise ValueError(
                f"raw, iou is {self.raw!r:.80}, {self.iou!r:.80}: expected the same number of both, increasing"
            )
        if not (iou.min() >= 0 and iou.max() <= 1):
            raise ValueError(f"iou has values from {iou.min()} to {iou.max()}: expected them within [0, 1]")

    @overload
    def __call__(self, score: float) -> float: ...

    @overload
    def __call__(self, score: np.ndarray) -> np.ndarray: ...

    def __call__(self, score: float | np.ndarray) -> float | np.ndarray:
        """Expected IoU for a raw score (float) or for each score of an array (array of the same shape)."""
        value = np.interp(score, self.raw, self.iou)
        return float(value) if np.ndim(score) == 0 else value

    @classmethod
    def fit(cls, scores: Sequence[float] | np.ndarray, ious: Sequence[float] | np.ndarray) -> Calibration:
        """Fit by isotonic regression (Barlow et al., 1972) on groups of at least 10 masks with neighbouring scores.

        The mean score and the mean IoU of a group are one knot. Knots of single masks would follow the noise.

        Args:
            scores: (n,) raw scores.
            ious: (n,) true IoU, in [0, 1].
        Raises:
            ValueError: fewer than 20 masks, or scores and IoUs differ in number.
        """
        from scipy.optimize import isotonic_regression

        scores, ious = np.asarray(scores, float), np.asarray(ious, float)
        if scores.shape != ious.shape or scores.ndim != 1 or len(scores) < MIN_MASKS:
            raise ValueError(
                f"scores, ious have shapes {scores.shape}, {ious.shape}: expected at least {MIN_MASKS} masks with a "
                "score and an IoU each"
            )
        order = np.argsort(scores, kind="stable")
        groups = np.array_split(order, max(len(order) // max(MIN_GROUP, round(math.sqrt(len(order)))), 2))
        raw = np.array([scores[group].mean() for group in groups])
        weights = np.array([len(group) for group in groups], float)
        level = isotonic_regression([ious[group].mean() for group in groups], weights=weights).x
        # Groups with the same mean score (a model that is always certain) become one knot.
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
        """Load the calibration of a mask tokenizer; None if it has none.

        Args:
            source: folder or weights file of the mask tokenizer.
        Raises:
            ValueError: `calibration.json` is damaged or of another version.
        """
        folder = Path(source)
        path = (folder.parent if folder.is_file() else folder) / CALIBRATION_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(read_text(path))
            if content["version"] != FORMAT_VERSION:
                raise ValueError(f"version is {content['version']!r}: expected {FORMAT_VERSION}")
            return cls(tuple(map(float, content["raw"])), tuple(map(float, content["iou"])))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: is not a calibration ({error}): expected a file written by `himtok calibrate`"
            ) from error
