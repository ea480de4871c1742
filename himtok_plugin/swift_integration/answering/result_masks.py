"""Masks or the error in a result row of `swift infer`, beside the ground truth."""

from __future__ import annotations

from typing import Any

from himtok_plugin.evaluation.ground_truth import ASKS_FOR_MASKS, select_answer_boxes, select_answer_masks
from himtok_plugin.evaluation.results import ERROR, TRUE_BOXES
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
    _unpack_column(row)
    row["masks"] = [mask.to_dict() for mask in masks]


def add_error_to_result(row: dict[str, Any], error: str) -> None:
    """Write to a result row, in place, why it has no answer. It gets the ground truth, but no `masks`.

    Args:
        row: see `add_masks_to_result`.
        error: the row's name and the reason, in one line.
    """
    _unpack_column(row)
    try:
        true = select_answer_boxes(row.get("objects"), row["messages"])
    except (ValueError, TypeError, LookupError, AttributeError):  # bad boxes may be why the row has failed
        true = None
    if true is not None:
        row[TRUE_BOXES] = true
    row[ERROR] = error


def _unpack_column(row: dict[str, Any]) -> None:
    packed = row.pop("masks", None)
    if packed is not None:
        column = MaskColumn.parse(packed)
        targets = select_answer_masks(column.masks, row["messages"], column.further.get(ASKS_FOR_MASKS))
        known = {"row": column.row, "dataset": column.dataset, "target_masks": targets}
        row.update(column.further, **{name: value for name, value in known.items() if value is not None})
