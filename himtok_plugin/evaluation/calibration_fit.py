"""Calibration of mask scores on a result file of `swift infer`: raw scores beside true IoU, fitted, cross-checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from himtok_plugin.evaluation.protocols import Protocol
from himtok_plugin.evaluation.scoring import PLAIN, asks_for_masks, get_mask_score, load_result_runs, read_results
from himtok_plugin.mask_text import text_to_codes
from himtok_plugin.metrics.calibration_error import calibration_summary
from himtok_plugin.prediction.calibration import MIN_MASKS, Calibration


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


def scored_masks(
    path: str | Path,
    root: str | Path | None = None,
    on_progress: Callable[[int], None] | None = None,
    protocol: Protocol = PLAIN,
) -> ScoredMasks:
    """Raw scores and true IoU of all masks in a result file, those of rows that ask for none left out.

    Args:
        path: result of `swift infer --plugin himtok`, made without `--min_score`.
        root: folder that relative paths of true masks start from.
        on_progress: called with the bytes read so far.
        protocol: says what `ignore` pixels count.
    Raises:
        ValueError: a row that cannot be read, a mask without a score, or a row that lacks masks of its answer.
        OSError: the file cannot be read.
    """
    scores, ious, rows = [], [], []
    for number, row in read_results(path, on_progress):
        try:
            if not asks_for_masks(row):
                continue
            found = load_result_runs(row, root).matched_ious(protocol)
            answered = sum(bool(span.codes) for span in text_to_codes(row.get("response") or ""))
            if answered > len(row["masks"]):
                raise ValueError(
                    f"masks holds {len(row['masks'])}, the response {answered}: expected a result made without "
                    "--min_score"
                )
            for i, entry in enumerate(row["masks"]):
                key = "raw_score" if "raw_score" in entry else "score"
                score = get_mask_score(entry, i, key)
                if score is None:
                    raise ValueError(f"masks[{i}].score is None: expected a number in [0, 1]")
                scores.append(float(score))
            ious += found
            rows += [number - 1] * len(found)
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from error
    return ScoredMasks(np.array(scores), np.array(ious), np.array(rows, int))


def fit_calibration(masks: ScoredMasks) -> tuple[Calibration, dict[str, float | int | None]]:
    """Calibrate on all masks, and say how well that works on masks that were not used.

    Returns:
        The calibration, and: `masks`; `mean_IoU`; `spearman`, `ECE_raw` and `Brier_raw`, see `CalibrationMetrics`;
        `ECE_calibrated` and `Brier_calibrated`, of masks whose calibration was fitted on the other half of the rows
        (None with too few masks for halves).
    Raises:
        ValueError: too few masks.
    """
    calibration = Calibration.fit(masks.scores, masks.ious)
    crossed = np.full(len(masks.scores), np.nan)
    for half in (0, 1):
        held_out = masks.rows % 2 == half
        if (~held_out).sum() >= MIN_MASKS:
            crossed[held_out] = Calibration.fit(masks.scores[~held_out], masks.ious[~held_out])(masks.scores[held_out])
    raw = calibration_summary(masks.scores, masks.ious)
    calibrated = {} if np.isnan(crossed).any() else calibration_summary(crossed, masks.ious)
    return calibration, {
        "masks": len(masks.scores),
        "mean_IoU": float(masks.ious.mean()),
        "spearman": raw["spearman"],
        "ECE_raw": raw["ECE"],
        "ECE_calibrated": calibrated.get("ECE"),
        "Brier_raw": raw["Brier"],
        "Brier_calibrated": calibrated.get("Brier"),
    }
