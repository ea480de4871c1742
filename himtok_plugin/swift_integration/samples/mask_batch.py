"""The masks of a batch as tensors: collation in a data-loader worker, codes in `input_ids` and `labels` in the step.

Contract: `collate_masks` runs on the CPU in a data-loader worker and finds every mask by its start token. It decides
where masks are, which of them are supervised and which have to be encoded. So `MaskBatch`, on the training device,
never waits for that device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from himtok_plugin.lmm.vocabulary import MaskVocabulary

IGNORE_INDEX = -100
BATCH_KEY_PREFIX = "himtok_"  # of the keys of a batch's mask tensors
SAMPLE_MASKS_KEY = BATCH_KEY_PREFIX + "masks"  # key of `SampleMasks` in an encoded sample
UNKNOWN_CODE = -1


class SampleMasks(TypedDict):
    """The masks of one sample, which the template passes to the collator.

    Attributes:
        starts: for each mask in the text, in order, whether it replaced a `<mask>`; False for literal mask text.
        squares: uint8 (m, s, s) of the m masks that replaced a `<mask>`; None if the training does not need them.
        codes: their codes; None for a mask that has to be encoded.
    """

    starts: list[bool]
    squares: np.ndarray | None
    codes: list[list[int] | None]


def collate_masks(
    samples: list[SampleMasks], input_ids: Tensor, labels: Tensor | None, vocabulary: MaskVocabulary, k: int
) -> dict[str, Tensor]:
    """Build the tensors of a batch's masks.

    Args:
        samples: the masks of every sample, in the order of the samples in `input_ids`.
        input_ids: (b, n) int64, padded or packed.
        labels: (b, n) int64 or None.
        k: mask tokens per mask.

    Returns:
        Dictionary with `himtok_positions` (m, k) int64 into the flattened `input_ids`, `himtok_codes` (m, k) int64,
        `himtok_to_encode` (u,) and `himtok_supervised` (v,) int64 indices into the m masks, `himtok_squares`
        uint8 (m, s, s); empty when the batch has no mask.
    """
    flags = [flag for sample in samples for flag in sample["starts"]]
    starts = (input_ids.flatten() == vocabulary.start_id).nonzero().flatten()
    if len(flags) != len(starts):
        raise ValueError(f"batch: got {len(starts)} masks in input_ids, expected the {len(flags)} of its samples")
    own = starts[torch.tensor(flags, dtype=torch.bool)]
    if not len(own):
        return {}
    positions = own[:, None] + 1 + torch.arange(k)
    known = [codes for sample in samples for codes in sample["codes"]]
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
    squares = [sample["squares"] for sample in samples]
    side = next((each.shape[-1] for each in squares if each is not None), None)
    if side is not None:
        # Unused zeros for the masks of samples without squares, so that indices of masks are indices of squares.
        filled = [
            np.zeros((len(sample["codes"]), side, side), np.uint8) if each is None else each
            for sample, each in zip(samples, squares, strict=True)
        ]
        batch["squares"] = torch.from_numpy(np.concatenate(filled))
    return {BATCH_KEY_PREFIX + name: value for name, value in batch.items()}


@dataclass
class MaskBatch:
    """The masks of a batch on the training device; `collate_masks` describes the fields."""

    positions: Tensor
    codes: Tensor
    to_encode: Tensor
    supervised: Tensor | None = None
    squares: Tensor | None = None

    @classmethod
    def pop_from(cls, inputs: dict[str, Any], device: torch.device) -> MaskBatch | None:
        """Remove the masks from a batch's inputs and return them; None if it has none."""
        found = {key: inputs.pop(key) for key in list(inputs) if key.startswith(BATCH_KEY_PREFIX)}
        if not found:
            return None
        return cls(
            **{key[len(BATCH_KEY_PREFIX) :]: value.to(device, non_blocking=True) for key, value in found.items()}
        )

    def supervised_squares(self) -> Tensor:
        """Return the squares (v, s, s) float32 in [0, 1] of the supervised masks."""
        return self._select_squares(self.supervised)

    def squares_to_encode(self) -> Tensor:
        """Return the squares (u, s, s) float32 in [0, 1] of the masks without codes."""
        return self._select_squares(self.to_encode)

    def _select_squares(self, masks: Tensor | None) -> Tensor:
        if self.squares is None or masks is None:
            raise RuntimeError("batch: got no squares or no labels, expected a batch for training with masks")
        return self.squares[masks].float() / 255

    def write_codes(self, inputs: dict[str, Any], vocabulary: MaskVocabulary) -> None:
        """Replace the placeholder codes by the codes, in `input_ids` and, if supervised, in `labels`."""
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
        """Return the indices (v * k,) into the flattened logits that predict the supervised masks' codes.

        The logits at position p - 1 predict the code at position p.

        Args:
            shape: of `input_ids`.
            logits_to_keep: which positions have logits: the last n of each sequence, those where a mask is True, or all
                with None or 0, as in transformers.
        """
        before = self.positions[self.supervised].flatten() - 1
        length = shape[-1]
        if logits_to_keep is None:
            return before
        if isinstance(logits_to_keep, Tensor):  # a mask over the positions of one packed sequence
            return logits_to_keep.long().cumsum(0)[before] - 1
        if logits_to_keep == 0:
            return before
        kept = min(logits_to_keep, length)
        return (before // length) * kept + before % length - (length - kept)
