"""Decode the masks of results again from their codes, with another resize or threshold, without a new inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from himtok_plugin.masks import Resize, to_rle
from himtok_plugin.masks.rle import check_size

from .protocols import resize_square
from .provenance import RunCard
from .results import PREDICTED

if TYPE_CHECKING:
    from himtok_plugin.mask_tokenizer import MaskTokenizer

BATCH = 32  # masks decoded at once


class Redecoder:
    """Replaces the masks of results by masks decoded from their codes.

    Results do not hold code probabilities, so this is hard decoding, and it undoes refinement.

    Args:
        mask_tokenizer: the mask tokenizer of the checkpoint that wrote the codes.
        resize: see `protocols.RESIZES`.
        threshold: probability from which a pixel is foreground.
    """

    def __init__(self, mask_tokenizer: MaskTokenizer, resize: Resize = "bilinear", threshold: float = 0.5) -> None:
        self.mask_tokenizer = mask_tokenizer
        self.resize = resize
        self.threshold = threshold

    def __call__(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return results with their masks decoded again, all together.

        Raises:
            ValueError: a mask has no codes of this mask tokenizer.
        """
        import torch

        masks = [mask for row in rows for mask in self.check(row)]
        squares: list[np.ndarray] = [np.empty(0)] * len(masks)
        by_length: dict[int, list[int]] = {}  # the codes of a batch are an array
        for i, mask in enumerate(masks):
            by_length.setdefault(len(mask["codes"]), []).append(i)
        for indices in by_length.values():
            for begin in range(0, len(indices), BATCH):
                batch = indices[begin : begin + BATCH]
                codes = torch.tensor([masks[i]["codes"] for i in batch], device=self.mask_tokenizer.device)
                with torch.inference_mode():
                    decoded = self.mask_tokenizer.decode(codes).cpu().numpy()
                for i, square in zip(batch, decoded, strict=True):
                    squares[i] = square
        made = (
            {**mask, **to_rle(resize_square(square, check_size(mask["size"]), self.threshold, self.resize))}
            for mask, square in zip(masks, squares, strict=True)
        )
        return [{**row, PREDICTED: [next(made) for _ in row[PREDICTED]]} if self.check(row) else row for row in rows]

    def check(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the masks of a result that are decoded again.

        Raises:
            ValueError: a mask has no codes of this mask tokenizer, or no size.
        """
        masks = row.get(PREDICTED)
        if not isinstance(masks, list):
            return []
        config = self.mask_tokenizer.config
        for i, mask in enumerate(masks):
            codes: Any = mask.get("codes") if isinstance(mask, dict) else None
            legal = isinstance(codes, list) and 1 <= len(codes) <= config.num_mask_tokens
            if not legal or not all(isinstance(c, int) and 0 <= c < config.codebook_size for c in codes):
                raise ValueError(
                    f"{PREDICTED}[{i}].codes: got {codes!r:.80}, expected 1 to {config.num_mask_tokens} integers below "
                    f"{config.codebook_size}"
                )
            check_size(mask.get("size"), f"{PREDICTED}[{i}].size")
        return masks

    def update_card(self, card: RunCard) -> RunCard:
        """Return the run card with the settings of this decoding."""
        return replace(
            card,
            mask_decoding="hard, decoded again from the codes",
            resize=self.resize,
            threshold=self.threshold,
            refiner="none",
            num_mask_tokens=card.num_mask_tokens or self.mask_tokenizer.config.num_mask_tokens,
        )
