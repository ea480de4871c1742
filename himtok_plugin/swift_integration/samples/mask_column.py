"""The mask columns of a sample on their way through ms-swift's preprocessing.

Contract: ms-swift keeps known columns only, and Arrow cannot hold a column of mixed types (paths, RLE, polygons). So
`pack_mask_column` packs `masks`, `mask_codes`, the `EVALUATION_COLUMNS`, the name of the dataset and the row's number
into one JSON string in the column `masks`, before ms-swift's preprocessing. `MaskColumn.parse` reads it in the
template. `pack_mask_column` also converts the reference's rows (`mask`, placeholder tokens) and rows without messages.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from himtok_plugin.data.samples import CODES, TEXT_COLUMNS, TEXT_KEYS, as_list, check_boxes, drop_nulls, row_masks
from himtok_plugin.evaluation.ground_truth import ASKS_FOR_MASKS
from himtok_plugin.mask_text import MASK_PLACEHOLDER, reference_placeholder_to_mask

ROW_NUMBER, ROW_DATASET = "himtok_row", "himtok_dataset"
PACKED = "himtok_masks"  # key that distinguishes a packed column from a path
# Evaluation needs them in the results: ignored regions, classes, descriptions of failures. Training ignores them.
EVALUATION_COLUMNS = (ASKS_FOR_MASKS, "ignore", "category", "referent", "expressions", "source")


@dataclass(frozen=True)
class MaskColumn:
    """The masks of one sample.

    Attributes:
        masks: one source per `<mask>`, as `masks.load_mask` accepts them.
        codes: codes made offline, one list per mask or None for a mask without codes; None if no mask has any.
        row: number of the row in its file, counted from 1; None if unknown.
        further: its `EVALUATION_COLUMNS`.
        dataset: its file or hub dataset, as the user named it; None if unknown.
        error: why the row cannot be used; only rows of `swift infer` are kept then, see failed_rows.py.
    """

    masks: list[Any]
    codes: list[list[int] | None] | None
    row: int | None
    further: dict[str, Any] = field(default_factory=dict)
    dataset: str | None = None
    error: str | None = None

    @classmethod
    def parse(cls, value: Any, codes: Any = None) -> MaskColumn:
        """Read a packed column, or plain `masks` (and `mask_codes`) of a sample that comes from no dataset."""
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
                    payload.get("error"),
                )
            value = payload
        return cls(as_list(value, "masks"), None if codes is None else as_list(codes, CODES), None)

    def to_json(self) -> str:
        """Pack the column; `parse` is the inverse."""
        payload: dict[str, Any] = {PACKED: self.masks, "codes": self.codes, "row": self.row, "dataset": self.dataset}
        if self.further:
            payload["further"] = self.further
        if self.error is not None:
            payload["error"] = self.error
        return json.dumps(payload, ensure_ascii=False)

    @property
    def name(self) -> str:
        """The sample's name in error messages."""
        return format_row_name(self.dataset, self.row)

    @property
    def key(self) -> tuple[str | None, int] | None:
        """Dataset and number, unique among all samples of a run; None if unknown."""
        return None if self.row is None else (self.dataset, self.row)

    def check_codes(self, num_mask_tokens: int, codebook_size: int) -> list[list[int] | None]:
        """Return the codes of all masks, None for a mask without codes.

        Args:
            num_mask_tokens: k, how many codes a mask has.
            codebook_size: v, the bound of the codes.
        Raises:
            ValueError: the codes do not fit the masks or the mask tokenizer.
        """
        if self.codes is None:
            return [None] * len(self.masks)
        if len(self.codes) != len(self.masks):
            raise ValueError(f"{self.name}: mask_codes holds {len(self.codes)} entries, masks holds {len(self.masks)}")
        for i, codes in enumerate(self.codes):
            if codes is None:
                continue
            if len(codes) != num_mask_tokens:
                raise ValueError(f"{self.name}: mask_codes[{i}] has {len(codes)} codes, expected {num_mask_tokens}")
            for code in codes:
                if isinstance(code, bool) or not isinstance(code, int) or not 0 <= code < codebook_size:
                    raise ValueError(
                        f"{self.name}: mask_codes[{i}] holds {code!r}, expected integers 0 to {codebook_size - 1}"
                    )
        return list(self.codes)


def combine_question_and_answer_masks(
    question: MaskColumn, question_masks: int, answer: MaskColumn, skipped_masks: int
) -> MaskColumn:
    """Combine the masks of one sample's question and of another sample's answer.

    Args:
        question: masks of the sample with the question.
        question_masks: how many of them belong to its question.
        answer: masks of the sample with the answer.
        skipped_masks: how many of them belong to that sample's own question.
    """
    parts = (question, slice(question_masks)), (answer, slice(skipped_masks, None))
    masks = [mask for each, part in parts for mask in each.masks[part]]
    codes = [code for each, part in parts for code in (each.codes or [None] * len(each.masks))[part]]
    return MaskColumn(masks, codes if any(codes) else None, question.row, dataset=question.dataset)


def format_row_name(dataset: str | None, row: int | None) -> str:
    """The name of a row in error messages."""
    name = "row" if row is None else f"row {row}"
    return name if dataset is None else f"{dataset}: {name}"


def pack_mask_column(row: dict[str, Any]) -> dict[str, Any]:
    """Pack the mask columns of a raw row; a row without masks passes unchanged.

    Raises:
        ValueError: `masks` or `mask_codes` is not a list.
    """
    number, dataset = row.pop(ROW_NUMBER, None), row.pop(ROW_DATASET, None)
    if isinstance(row.get("masks"), str) and row["masks"].startswith(f'{{"{PACKED}":'):
        return row  # ms-swift preprocesses in several passes
    name = format_row_name(dataset, number)
    check_boxes(row.get("objects"), name)
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
            row[key] = _replace_reference_placeholders(row[key])
    if not any(row.get(key) for key in TEXT_COLUMNS):
        # Stage 1 needs masks only, but ms-swift drops rows without text.
        row["messages"] = [{"role": "user", "content": MASK_PLACEHOLDER * len(masks)}]
    further = {key: value for key in EVALUATION_COLUMNS if (value := row.pop(key, None)) is not None}
    if "ignore" in further:
        further["ignore"] = [drop_nulls(mask) for mask in as_list(further["ignore"], f"{name}: ignore")]
    row["masks"] = MaskColumn(masks, codes, number, further, dataset).to_json()
    return row


def _replace_reference_placeholders(text: Any) -> Any:
    """Replace the reference's placeholder tokens by `<mask>` in a text, in messages or in a history."""
    if isinstance(text, str):
        return reference_placeholder_to_mask(text)
    if isinstance(text, list):
        return [_replace_reference_placeholders(part) for part in text]
    if isinstance(text, dict):
        return {key: _replace_reference_placeholders(part) if key in TEXT_KEYS else part for key, part in text.items()}
    return text
