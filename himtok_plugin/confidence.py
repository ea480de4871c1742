"""How sure a predicted mask is: a raw score from its decoded code probabilities, and a calibration to an IoU.

Contract: `mask_certainty` turns what a mask's codes were decoded to into a raw score in [0, 1]. `Calibration` maps raw
scores to the IoU that masks of such a score had on held-out rows: monotone, fitted by isotonic regression, kept as
`calibration.json` in the mask tokenizer's folder. `fit_on_results` does it for a result file of `swift infer`. Does not
know models and ms-swift; probabilities and scores come from elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .mask_text import text_to_codes
from .metrics import mask_iou
from .scoring import predicted_and_target_masks, read_rows

CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 2  # 1 calibrated another raw score
NUM_BINS = 10  # of the expected calibration error, as in Guo et al., ICML 2017
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


def expected_calibration_error(scores: Sequence[float], ious: Sequence[float], bins: int = NUM_BINS) -> float:
    """Mean distance between score and IoU over bins of equal width, weighted by their masks (Guo et al., ICML 2017).

    Args:
        scores, ious: (n,) each, in [0, 1], n >= 1.
        bins: number of bins of [0, 1].
    """
    scores, ious = np.asarray(scores, float), np.asarray(ious, float)
    place = np.clip((scores * bins).astype(int), 0, bins - 1)
    gaps = np.bincount(place, scores - ious, minlength=bins)  # of each bin, its masks times its mean gap
    return float(np.abs(gaps).sum() / len(scores))


def rank_correlation(scores: Sequence[float], ious: Sequence[float]) -> float | None:
    """Spearman's rank correlation in [-1, 1]; None where either does not vary."""
    from scipy.stats import spearmanr

    scores, ious = np.asarray(scores, float), np.asarray(ious, float)
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(ious) == 0:
        return None
    return float(spearmanr(scores, ious).statistic)


@dataclass(frozen=True)
class ScoredMasks:
    """Predicted masks of a result file.

    Attributes:
        scores: (n,) raw scores.
        ious: (n,) IoU of each with the true mask that it stands for.
        rows: (n,) number of its row, counted from 0.
    """

    scores: np.ndarray
    ious: np.ndarray
    rows: np.ndarray


def matched_ious(predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> list[float]:
    """IoU of each predicted mask with the true one that it stands for, 0 for one that stands for none.

    Args:
        predicted, true: bool (h, w) each. Who belongs to whom is decided by the largest sum of IoU.
    """
    from scipy.optimize import linear_sum_assignment

    ious = [0.0] * len(predicted)
    if predicted and true:
        table = np.array([[mask_iou(one, other) if other.any() else 0.0 for other in true] for one in predicted])
        for i, j in zip(*linear_sum_assignment(table, maximize=True), strict=True):
            ious[i] = float(table[i, j])
    return ious


def scored_masks(
    path: str | Path, root: str | Path | None = None, on_progress: Callable[[int], None] | None = None
) -> ScoredMasks:
    """Raw scores and true IoU of all masks in a result file.

    Args:
        path: result of `swift infer --plugin himtok`, made without `--min_score`.
        root: folder that relative paths of true masks start from.
        on_progress: called with the bytes read so far.
    Raises:
        ValueError: a row that cannot be read, a mask without a score, or a row that lacks masks of its answer.
        OSError: the file cannot be read.
    """
    scores, ious, rows = [], [], []
    for number, row in read_rows(path, on_progress):
        try:
            predicted, true = predicted_and_target_masks(row, root)
            answered = sum(bool(span.codes) for span in text_to_codes(row.get("response") or ""))
            if answered > len(row["masks"]):
                raise ValueError(
                    f"masks holds {len(row['masks'])}, the response {answered}: expected a result made without "
                    "--min_score"
                )
            for i, entry in enumerate(row["masks"]):
                score = entry.get("raw_score", entry.get("score"))
                if not isinstance(score, int | float) or not 0 <= score <= 1:
                    raise ValueError(f"masks[{i}].score is {score!r}: expected a number in [0, 1]")
                scores.append(float(score))
            ious += matched_ious(list(predicted), list(true))
            rows += [number - 1] * len(predicted)
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from error
    return ScoredMasks(np.array(scores), np.array(ious), np.array(rows, int))


def fit_on_results(masks: ScoredMasks) -> tuple[Calibration, dict[str, float | int | None]]:
    """Calibrate on all masks, and say how well that works on masks that were not used.

    Returns:
        The calibration, and: `masks`; `mean_IoU`; `spearman`, correlation of score and IoU; `ECE_raw`;
        `ECE_calibrated`, of masks whose calibration was fitted on the other half of the rows (None with too few masks
        for halves).
    Raises:
        ValueError: too few masks.
    """
    calibration = Calibration.fit(masks.scores, masks.ious)
    crossed = np.full(len(masks.scores), np.nan)
    for half in (0, 1):
        held_out = masks.rows % 2 == half
        if (~held_out).sum() >= MIN_MASKS:
            crossed[held_out] = Calibration.fit(masks.scores[~held_out], masks.ious[~held_out])(masks.scores[held_out])
    return calibration, {
        "masks": len(masks.scores),
        "mean_IoU": float(masks.ious.mean()),
        "spearman": rank_correlation(masks.scores, masks.ious),
        "ECE_raw": expected_calibration_error(masks.scores, masks.ious),
        "ECE_calibrated": None if np.isnan(crossed).any() else expected_calibration_error(crossed, masks.ious),
    }
