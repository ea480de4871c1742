"""Metrics of a result file under a protocol, one result in memory at a time.

Contract: for each result, the union of its predicted `masks` is compared with the union of its `target_masks`; the
protocol says how its `ignore` masks count. The `score` of a predicted mask is compared with its IoU with the true mask
that it is matched with. The first of `boxes` is compared with the box in `target_boxes` if there is exactly one. A
result with neither true masks nor true boxes is counted, but not scored. A result with an `error` is wrong in every
metric of its truth, also where an answer without a mask would be right. A result that cannot be read raises a
ValueError that begins with its row number; no result is skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from himtok_plugin.masks import Masks
from himtok_plugin.masks.run_lengths import Runs
from himtok_plugin.metrics.boxes import BoxMetrics
from himtok_plugin.metrics.calibration_error import CalibrationMetrics
from himtok_plugin.metrics.segmentation import ClassMetrics, Overlap, SegmentationMetrics

from .protocols import PLAIN, Protocol
from .results import (
    CLASS,
    ERROR,
    PREDICTED,
    PREDICTED_BOXES,
    TRUE,
    TRUE_BOXES,
    ResultRuns,
    check_min_score,
    drop_low_scores,
    get_boxes,
    get_mask_scores,
    get_question,
    has_true_masks,
    load_result_masks,
    load_result_runs,
    read_results,
)


def score_results(
    path: str | Path,
    root: str | Path | None = None,
    boundary: bool = True,
    on_progress: Callable[[int], None] | None = None,
    min_score: float = 0.0,
) -> dict[str, float | int | None]:
    """Score a result file under the protocol `plain`.

    If there is a target and no predicted mask, the answer is missing: it is scored as an empty mask and counted. If
    there is no target, an answer without a mask is right. Results of questions without a mask are not scored.

    Args:
        path: JSON lines with these keys. `masks`: predicted masks, COCO RLEs. `target_masks`: true masks as in the
            dataset (paths, RLEs or polygons), if the question asks for masks. `target_boxes` and `boxes`: true and
            predicted boxes, x1, y1, x2, y2 in pixels, if it asks for a box. Optional: `ignore`, masks of ignored
            regions, and `category`.
        root: folder of relative paths in `target_masks`; by default the working directory, as in ms-swift.
        boundary: also compute `boundary_F` and `boundary_IoU`, the slowest metrics.
        on_progress: called after each line with the bytes read so far.
        min_score: predicted masks with a lower `score` are dropped, as by `--min_score` of `swift infer`.
    Returns:
        See `ResultScores.compute`.
    Raises:
        ValueError: a result cannot be scored, or none of them has a truth.
        OSError: the file cannot be read.
    """
    scores = ResultScores(PLAIN, boundary, min_score, root)
    for number, row in read_results(path, on_progress):
        scores.add(row, f"{path}: row {number}")
    scores.check(path)
    return scores.compute()


class ResultScores:
    """Accumulates the metrics of results; accumulators of several processes can be merged.

    Args:
        protocol: the evaluation protocol.
        boundary, min_score, root: see `score_results`.
    Raises:
        ValueError: `min_score` out of range.
    """

    def __init__(
        self,
        protocol: Protocol = PLAIN,
        boundary: bool = True,
        min_score: float = 0.0,
        root: str | Path | None = None,
    ) -> None:
        check_min_score(min_score)
        self.protocol = protocol
        self.min_score = min_score
        self.root = root
        self.metrics = SegmentationMetrics(boundary)
        self.classes = ClassMetrics()
        self.calibration = CalibrationMetrics()
        self.boxes = BoxMetrics()
        self._rows = 0
        self._not_scored = 0
        self._predicted = 0  # masks, including those below `min_score`
        self._with_score = 0

    def __len__(self) -> int:
        """Number of results, including those that are not scored."""
        return self._rows

    def without_results(self) -> ResultScores:
        """Return an empty accumulator with the same rules."""
        return ResultScores(self.protocol, self.metrics.boundary, self.min_score, self.root)

    def add(self, row: dict[str, Any], name: str = "row") -> float | None:
        """Add a result and return the IoU of its masks, None without true masks; error messages begin with `name`."""
        try:
            if row.get(ERROR) is not None:
                return self._add_failed(row)
            boxed = self._add_box(row)
            iou = self._add_masks(row) if has_true_masks(row) else None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self._rows += 1
        self._not_scored += iou is None and not boxed
        return iou

    def _add_failed(self, row: dict[str, Any]) -> float | None:
        """Add a result with an error; it is not scored if it has no truth that can be read."""
        try:
            true_boxes = get_boxes(row, TRUE_BOXES) or []
            runs = load_result_runs({**row, PREDICTED: []}, self.root) if row.get(TRUE) is not None else None
        except (ValueError, OSError):  # an unreadable truth can be what the error is about
            true_boxes, runs = [], None
        if len(true_boxes) == 1:
            self.boxes.update(None, true_boxes[0])
        if runs is not None:
            target = runs.overlap(self.protocol).target
            self.metrics.update_failed(target)
            if isinstance(row.get(CLASS), str):
                self.classes.update(row[CLASS], Overlap(0, 0, target))
        self._rows += 1
        self._not_scored += runs is None and len(true_boxes) != 1
        return None if runs is None else 0.0

    def _add_box(self, row: dict[str, Any]) -> bool:
        true, found = get_boxes(row, TRUE_BOXES), get_boxes(row, PREDICTED_BOXES)
        if true is None or len(true) != 1:  # several boxes have no known order
            return False
        if found is None:
            raise ValueError(f"has {TRUE_BOXES!r} and no {PREDICTED_BOXES!r}: expected the predicted boxes as well")
        self.boxes.update(found[0] if found else None, true[0])
        return True

    def _add_masks(self, row: dict[str, Any]) -> float:
        self.protocol.check_question(get_question(row), row.get("expressions"))
        scores = get_mask_scores(row)
        self._predicted += len(scores)
        self._with_score += sum(score is not None for score in scores)
        row = drop_low_scores(row, self.min_score)
        if self.metrics.boundary:
            predicted, true, ignore = load_result_masks(row, self.root)
            runs = ResultRuns(_to_runs(predicted), _to_runs(true), _to_runs(ignore), predicted.size)
            pair = self.protocol.pair(predicted.union(), true.union(), ignore.union() if ignore else None)
            self.metrics.update(*pair, missing=runs.missing)
            overlap = Overlap.of(*pair)
        else:
            runs = load_result_runs(row, self.root)
            overlap = runs.overlap(self.protocol)
            self.metrics.update_overlap(overlap, runs.missing)
        if isinstance(row.get(CLASS), str):
            self.classes.update(row[CLASS], overlap)
        if any(score is not None for score in scores):
            single = len(runs.predicted) == len(runs.true) == 1  # then the overlap is that of these two masks
            ious = [overlap.iou if overlap.target else 0.0] if single else runs.matched_ious(self.protocol)
            for score, iou in zip(get_mask_scores(row), ious, strict=True):
                if score is not None:
                    self.calibration.update(score, iou)
        return overlap.iou

    def merge(self, other: ResultScores) -> ResultScores:
        """Add the results of another accumulator to this one, and return this one."""
        for name in ("metrics", "classes", "calibration", "boxes"):
            getattr(self, name).merge(getattr(other, name))
        for name in ("_rows", "_not_scored", "_predicted", "_with_score"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def check(self, path: str | Path) -> None:
        """Raise a ValueError if no result of the file was scored, or if `min_score` is set and no mask has a score."""
        if not self._rows:
            raise ValueError(f"{path}: holds no rows, expected JSON lines written by `swift infer`")
        if self._not_scored == self._rows:
            raise ValueError(
                f"{path}: none of {self._rows} rows has {TRUE!r}, or one of {TRUE_BOXES!r}: expected a result of "
                "`swift infer --plugin himtok` on rows that ask for masks or a box"
            )
        if self.min_score and self._predicted and not self._with_score:
            raise ValueError(f"min_score: got {self.min_score}, expected 0: no mask of {path} has a score")

    def compute(self) -> dict[str, float | int | None]:
        """Compute the metrics of all results so far.

        Returns:
            With true masks, what `SegmentationMetrics.compute` returns. With a `category`, `mIoU` and `classes`. With
            scores of masks, what `CalibrationMetrics.compute` returns. With true boxes, what `BoxMetrics.compute`
            returns, its counts named `box_samples` and `box_missing`. Always `not_scored`, the number of results with
            neither true masks nor one true box.
        """
        scores: dict[str, float | int | None] = {}
        if len(self.metrics):
            scores |= self.metrics.compute(self.protocol.precision_over_targets)
        if len(self.classes):
            scores |= self.classes.compute()
        if len(self.calibration):
            scores |= self.calibration.compute()
        if len(self.boxes):
            counts = ("samples", "missing")
            scores |= {f"box_{name}" if name in counts else name: n for name, n in self.boxes.compute().items()}
        return {**scores, "not_scored": self._not_scored}


def _to_runs(masks: Masks) -> list[Runs]:
    return [Runs.from_mask(mask) for mask in masks]
