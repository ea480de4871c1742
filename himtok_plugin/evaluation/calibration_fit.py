"""`himtok calibrate`: fit a calibration of mask scores on a result file, and measure it on masks not used for the fit.

Contract: `read_scored_masks` reads the raw score of every predicted mask and its IoU with the true mask that it is
matched with. `fit_calibration` fits on all of them, and reports the errors of two fits on one half of the results each,
measured on the other half.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from himtok_plugin.mask_text import text_to_codes
from himtok_plugin.metrics.calibration_error import summarize_calibration
from himtok_plugin.prediction.calibration import MIN_MASKS, Calibration

from .protocols import PLAIN, Protocol
from .result_keys import Key, check_rows_once, get_result_key
from .results import ERROR, get_mask_score, has_true_masks, load_result_runs, read_results


@dataclass(frozen=True)
class ScoredMasks:
    """The predicted masks of a result file.

    Attributes:
        scores: float64 (n,) raw scores in [0, 1].
        ious: float64 (n,) IoU of each mask with its true mask, 0 if it is matched with none.
        rows: int64 (n,) line of its result, counted from 0.
    """

    scores: np.ndarray
    ious: np.ndarray
    rows: np.ndarray


def read_scored_masks(
    path: str | Path,
    root: str | Path | None = None,
    on_progress: Callable[[int], None] | None = None,
    protocol: Protocol = PLAIN,
) -> ScoredMasks:
    """Read the raw scores and IoUs of all masks in a result file, except in results without truth or with an error.

    Args:
        path: result file of `swift infer --plugin himtok`, made without `--min_score`.
        root: folder of relative paths of true masks.
        on_progress: called with the bytes read so far.
        protocol: says how ignored pixels count.
    Raises:
        ValueError: a result cannot be read, a row has two, a mask has no score, or masks of the answer are missing.
        OSError: the file cannot be read.
    """
    scores: list[float] = []
    ious: list[float] = []
    rows: list[int] = []
    keys: list[tuple[int, Key]] = []
    for number, row in read_results(path, on_progress):
        if (key := get_result_key(row)) is not None:
            keys.append((number, key))
        try:
            if row.get(ERROR) is not None or not has_true_masks(row):
                continue
            found = load_result_runs(row, root).matched_ious(protocol)
            scores += _read_raw_scores(row)
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from error
        ious += found
        rows += [number - 1] * len(found)
    check_rows_once(path, keys)
    return ScoredMasks(np.array(scores), np.array(ious), np.array(rows, int))


def _read_raw_scores(row: dict[str, Any]) -> list[float]:
    answered = sum(bool(span.codes) for span in text_to_codes(row.get("response") or ""))
    if answered > len(row["masks"]):
        raise ValueError(
            f"masks holds {len(row['masks'])}, the response {answered}: expected a result made without --min_score"
        )
    scores = []
    for i, mask in enumerate(row["masks"]):
        score = get_mask_score(mask, i, "raw_score" if "raw_score" in mask else "score")
        if score is None:
            raise ValueError(f"masks[{i}].score is None: expected a number in [0, 1]")
        scores.append(float(score))
    return scores


def fit_calibration(masks: ScoredMasks) -> tuple[Calibration, dict[str, float | int | None]]:
    """Fit a calibration on all masks, and measure calibrations fitted on half of the results on the other half.

    Returns:
        The calibration, and a report: `masks`, `mean_IoU`; `spearman`, `ECE_raw` and `Brier_raw` of the raw scores, see
        `metrics.calibration_error`; `ECE_calibrated` and `Brier_calibrated` of scores calibrated on the other half of
        the results, None if a half has too few masks.
    Raises:
        ValueError: fewer than 20 masks.
    """
    calibration = Calibration.fit(masks.scores, masks.ious)
    crossed = np.full(len(masks.scores), np.nan)
    for half in (0, 1):
        held_out = masks.rows % 2 == half
        if (~held_out).sum() >= MIN_MASKS:
            fitted = Calibration.fit(masks.scores[~held_out], masks.ious[~held_out])
            crossed[held_out] = fitted(masks.scores[held_out])
    raw = summarize_calibration(masks.scores, masks.ious)
    calibrated = {} if np.isnan(crossed).any() else summarize_calibration(crossed, masks.ious)
    return calibration, {
        "masks": len(masks.scores),
        "mean_IoU": float(masks.ious.mean()),
        "spearman": raw["spearman"],
        "ECE_raw": raw["ECE"],
        "ECE_calibrated": calibrated.get("ECE"),
        "Brier_raw": raw["Brier"],
        "Brier_calibrated": calibrated.get("Brier"),
    }
