"""Masks of a result."""

from __future__ import annotations

from typing import Any

from himtok_plugin.evaluation.ground_truth import ASKS_FOR_MASKS, select_answer_masks
from himtok_plugin.prediction.predictor import PredictedMask
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn


def add_masks_to_result(row: dict[str, Any], masks: list[PredictedMask]) -> None:
    """Put predicted masks into a result row; the row's own masks of the answer, the truth, move to `target_masks`.

    A row that asks for no mask gets no `target_masks`, which keeps its answer out of masks' scores. The row has its
    `EVALUATION_COLUMNS` again, its `dataset`, and its number in that as `row`.
    """
    truth = row.pop("masks", None)
    if truth is not None:
        column = MaskColumn.parse(truth)
        true = select_answer_masks(column.masks, row["messages"], column.further.get(ASKS_FOR_MASKS))
        known = {"row": column.row, "dataset": column.dataset, "target_masks": true}
        row.update(column.further, **{name: value for name, value in known.items() if value is not None})
    row["masks"] = [mask.to_dict() for mask in masks]
