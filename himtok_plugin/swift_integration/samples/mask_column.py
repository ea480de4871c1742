"""Mask columns of a dataset row on their way through ms-swift's preprocessing.

Contract: a row's `masks`, `mask_codes`, what evaluation wants to know of it (`EVALUATION_COLUMNS`) and, to tell rows
apart, its dataset and its number there travel as one JSON string in the column `masks`, because Arrow cannot hold a
column of mixed types (paths, RLE, polygons) and ms-swift keeps known columns only.
`pack_mask_column` makes that string before ms-swift's own preprocessing, `MaskColumn.parse` reads it in the template.
The reference's rows (`mask`, placeholder tokens) and rows that hold masks only are brought into ms-swift's form here.
Does not know tokens and models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from himtok_plugin.data.samples import CODES, TEXT_COLUMNS, TEXT_KEYS, as_list, row_masks, without_nulls
from himtok_plugin.evaluation.ground_truth import ASKS_FOR_MASKS
from himtok_plugin.mask_text import MASK_PLACEHOLDER, reference_placeholder_to_mask

ROW_NUMBER, ROW_DATASET = "himtok_row", "himtok_dataset"
PACKED = "himtok_masks"  # key that tells a packed column from a path
# Not read in training; result rows have them again, for protocols that ignore pixels, for classes, for failures.
EVALUATION_COLUMNS = (ASKS_FOR_MASKS, "ignore", "category", "referent", "expressions", "source")


@dataclass(frozen=True)
class MaskColumn:
    """The masks of one row.

    Attributes:
        masks: one source per `<mask>`, as `masks.load_mask` takes them.
        codes: codes made offline, one list per mask (None where there are none), or None for the whole row.
        row: number of the row in its file, counted from 1 like lines; None when unknown.
        further: its `EVALUATION_COLUMNS`.
        dataset: the file or the hub's dataset that it is of, as it was asked for; None when unknown.
    """

    masks: list[Any]
    codes: list[list[int] | None] | None
    row: int | None
    further: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None

    @classmethod
    def parse(cls, value: Any, codes: Any = None) -> MaskColumn:
        """Read the packed column, or plain `masks` (and `mask_codes`) of a row that never passed a dataset."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            try:
                payload = json.loads(value)
            except json.JSONDecodeError:
                payload = [value]  # a single path
            if isinstance(payload, dict) and PACKED in payload:
                return cls(
                    payload[PACKED],
                    payload["codes"],
                    payload["row"],
                    payload.get("further") or {},
                    payload.get("dataset"),
                )
            value = payload
        return cls(as_list(value, "masks"), None if codes is None else as_list(codes, CODES), None)

    def to_json(self) -> str:
        payload = {PACKED: self.masks, "codes": self.codes, "row": self.row, "dataset": self.dataset}
        if self.further:
            payload["further"] = self.further
        return json.dumps(payload, ensure_ascii=False)

    @property
    def name(self) -> str:
        """How error messages call the row."""
        return _name(self.dataset, self.row)

    @property
    def key(self) -> tuple[str | None, int] | None:
        """What tells the row apart from all others of a run, None when unknown."""
        return None if self.row is None else (self.dataset, self.row)


def combine_question_and_answer_masks(
    column: MaskColumn, given: int, other: MaskColumn, others_given: int
) -> MaskColumn:
    """The masks of a row's question and of another row's answer.

    Args:
        column, other: of the two rows.
        given, others_given: how many of their masks are their questions'.
    """
    parts = (column, slice(given)), (other, slice(others_given, None))
    masks = [mask for each, part in parts for mask in each.masks[part]]
    codes = [code for each, part in parts for code in (each.codes or [None] * len(each.masks))[part]]
    return MaskColumn(masks, codes if any(codes) else None, column.row, dataset=column.dataset)


def _name(dataset: str | None, row: int | None) -> str:
    name = "row" if row is None else f"row {row}"
    return name if dataset is None else f"{dataset}: {name}"


def pack_mask_column(row: dict[str, Any]) -> dict[str, Any]:
    """Bring a raw row into ms-swift's form; rows without masks pass unchanged.

    Raises:
        ValueError: `masks` or `mask_codes` is no list.
    """
    number, dataset = row.pop(ROW_NUMBER, None), row.pop(ROW_DATASET, None)
    if isinstance(row.get("masks"), str) and row["masks"].startswith(f'{{"{PACKED}":'):
        return row  # ms-swift preprocesses in several passes
    name = _name(dataset, number)
    masks, codes = row_masks(row, name), row.pop(CODES, None)
    row.pop("masks", None)
    row.pop("mask", None)
    if masks is None:
        if codes is None:
            return row
        masks = []
    codes = None if codes is None else as_list(codes, f"{name}: {CODES}")
    for key in TEXT_COLUMNS:
        if row.get(key):
            row[key] = _with_mask_placeholders(row[key])
    if not any(row.get(key) for key in TEXT_COLUMNS):
        # A row for stage 1: ms-swift drops rows that say nothing.
        row["messages"] = [{"role": "user", "content": MASK_PLACEHOLDER * len(masks)}]
    further = {key: value for key in EVALUATION_COLUMNS if (value := row.pop(key, None)) is not None}
    if "ignore" in further:
        further["ignore"] = [without_nulls(mask) for mask in as_list(further["ignore"], f"{name}: ignore")]
    row["masks"] = MaskColumn(masks, codes, number, further, dataset).to_json()
    return row


def _with_mask_placeholders(text: Any) -> Any:
    """Of a text, of messages, or of the questions and answers of a history."""
    if isinstance(text, str):
        return reference_placeholder_to_mask(text)
    if isinstance(text, list):
        return [_with_mask_placeholders(part) for part in text]
    if isinstance(text, dict):
        return {key: _with_mask_placeholders(part) if key in TEXT_KEYS else part for key, part in text.items()}
    return text
