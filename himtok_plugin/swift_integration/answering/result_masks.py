"""Masks in a result row of `swift infer`, beside the ground truth."""

from __future__ import annotations

from typing import Any

from himtok_plugin.evaluation.ground_truth import ASKS_FOR_MASKS, select_answer_masks
from himtok_plugin.prediction.predictor import PredictedMask
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn


def add_masks_to_result(row: dict[str, Any], masks: list[PredictedMask]) -> None:
    """Write predicted masks to a result row, in place.

    The dataset's own masks of the answer, the ground truth, move to `target_masks`. A row whose question requests no
    mask gets no `target_masks`, so its answer does not count in mask scores. The row's `EVALUATION_COLUMNS`, `dataset`
    and number, as `row`, are unpacked.

    Args:
        row: ms-swift's result, with its packed mask column and its messages.
        masks: the predicted masks.
    """
    packed = row.pop("masks", None)
    if packed is not None:
        column = MaskColumn.parse(packed)
        targets = select_answer_masks(column.masks, row["messages"], column.further.get(ASKS_FOR_MASKS))
        known = {"row": column.row, "dataset": column.dataset, "target_masks": targets}
        row.update(column.further, **{name: value for name, value in known.items() if value is not None})
    row["masks"] = [mask.to_dict() for mask in masks]
