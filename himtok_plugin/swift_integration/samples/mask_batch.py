"""The masks of a batch as tensors, and putting their codes into `input_ids` and `labels`.

Contract: `collate_masks` runs in a data-loader worker, on the CPU, and finds every mask by its start token; `MaskBatch`
then works on the training device without waiting for it: where masks stand, which of them are supervised and which need
encoding was all decided in the worker. Does not know of trainers and of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from himtok_plugin.lmm.vocabulary import MaskVocabulary

IGNORE_INDEX = -100
PREFIX = "himtok_"  # of the keys under which a batch's tensors travel
ENCODED = PREFIX + "masks"  # key of `encoded_masks` in a row
UNKNOWN_CODE = -1


def encoded_masks(starts: list[bool], squares: np.ndarray | None, codes: list[list[int] | None]) -> dict[str, Any]:
    """What the template hands from a row to the collator.

    Args:
        starts: for each mask in the text, in order, whether it is one of the row's (else it was written out).
        squares: uint8 (m, s, s) of the row's masks, None when nobody needs them.
        codes: codes of the row's masks as far as they are known.
    """
    return {"starts": starts, "squares": squares, "codes": codes}


def collate_masks(
    rows: list[dict[str, Any]], input_ids: Tensor, labels: Tensor | None, vocabulary: MaskVocabulary, k: int
):
    """Tensors of a batch's masks, keyed so that the trainer finds them.

    Args:
        rows: `encoded_masks` of every row, in the order in which the rows stand in `input_ids`.
        input_ids: (b, n) int64, padded or packed.
        labels: (b, n) int64 or None.
        k: mask tokens per mask.

    Returns:
        Dictionary with `himtok_positions` (m, k) int64 into the flattened `input_ids`, `himtok_codes` (m, k) int64,
        `himtok_to_encode` (u,) and `himtok_supervised` (v,) int64 indices into the m masks, `himtok_squares`
        uint8 (m, s, s); empty when the batch has no mask.
    """
    flags = [flag for row in rows for flag in row["starts"]]
    starts = (input_ids.flatten() == vocabulary.start_id).nonzero().flatten()
    if len(flags) != len(starts):
        raise ValueError(f"batch holds {len(starts)} masks, its rows announced {len(flags)}: a mask was cut or added")
    own = starts[torch.tensor(flags, dtype=torch.bool)]
    if not len(own):
        return {}
    positions = own[:, None] + 1 + torch.arange(k)
    known = [codes for row in rows for codes in row["codes"]]
    codes = torch.full((len(known), k), UNKNOWN_CODE)
    for i, code in enumerate(known):
        if code is not None:
            codes[i] = torch.tensor(code)
    batch = {
        "positions": positions,
        "codes": codes,
        "to_encode": (codes[:, 0] == UNKNOWN_CODE).nonzero().flatten(),
    }
    if labels is not None:
        supervised = (labels.flatten()[positions] != IGNORE_INDEX).all(dim=1)
        batch["supervised"] = supervised.nonzero().flatten()
    side = next((row["squares"].shape[-1] for row in rows if row["squares"] is not None), None)
    if side is not None:
        # A row without squares has masks all the same: zeros that nobody looks at keep the places.
        squares = [
            np.zeros((len(row["codes"]), side, side), np.uint8) if row["squares"] is None else row["squares"]
            for row in rows
        ]
        batch["squares"] = torch.from_numpy(np.concatenate(squares))
    return {PREFIX + name: value for name, value in batch.items()}


@dataclass
class MaskBatch:
    """The masks of a batch on the training device; see `collate_masks` for the fields."""

    positions: Tensor
    codes: Tensor
    to_encode: Tensor
    supervised: Tensor | None = None
    squares: Tensor | None = None

    @classmethod
    def take(cls, inputs: dict[str, Any], device: torch.device) -> MaskBatch | None:
        """Remove the masks from a batch; None when it has none."""
        found = {key: inputs.pop(key) for key in list(inputs) if key.startswith(PREFIX)}
        if not found:
            return None
        return cls(**{key[len(PREFIX) :]: value.to(device, non_blocking=True) for key, value in found.items()})

    def targets(self) -> Tensor:
        """(v, s, s) float32 squares of the supervised masks."""
        return self.squares[self.supervised].float() / 255

    def squares_to_encode(self) -> Tensor:
        """(u, s, s) float32 squares of the masks whose codes are not known."""
        return self.squares[self.to_encode].float() / 255

    def write_codes(self, inputs: dict[str, Any], vocabulary: MaskVocabulary) -> None:
        """Put the codes where the placeholders stand, in `input_ids` and, where supervised, in `labels`."""
        where = self.positions.flatten()
        ids = (self.codes + vocabulary.first_code_id).flatten()
        input_ids = inputs["input_ids"].clone()
        input_ids.view(-1)[where] = ids
        inputs["input_ids"] = input_ids
        if inputs.get("labels") is not None:
            labels = inputs["labels"].clone()
            flat = labels.view(-1)
            flat[where] = torch.where(flat[where] == IGNORE_INDEX, IGNORE_INDEX, ids)
            inputs["labels"] = labels

    def supervised_logit_positions(self, shape: torch.Size, logits_to_keep: int | Tensor | None) -> Tensor:
        """(v * k,) rows of the flattened logits that predict the supervised masks' codes.

        A code at position p is predicted at p - 1; `logits_to_keep` says which positions have logits at all.

        Args:
            shape: of `input_ids`.
        """
        before = self.positions[self.supervised].flatten() - 1
        length = shape[-1]
        if logits_to_keep is None:
            return before
        if isinstance(logits_to_keep, Tensor):  # one packed row: those positions where it is True
            return logits_to_keep.long().cumsum(0)[before] - 1
        if logits_to_keep == 0:  # transformers: all of them
            return before
        kept = min(logits_to_keep, length)
        return (before // length) * kept + before % length - (length - kept)
