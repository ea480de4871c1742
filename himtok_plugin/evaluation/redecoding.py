"""Decode the masks of results again from their codes, with another resize or threshold, without a new inference."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from himtok_plugin.masks import Resize, to_rle
from himtok_plugin.masks.rle import check_size

from .protocols import resize_square
from .provenance import RunCard
from .results import PREDICTED

if TYPE_CHECKING:
    from himtok_plugin.mask_tokenizer import MaskTokenizer


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

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the result with its masks decoded again.

        Raises:
            ValueError: a mask has no codes of this mask tokenizer.
        """
        import torch

        masks = row.get(PREDICTED)
        if not isinstance(masks, list) or not masks:
            return row
        config, decoded = self.mask_tokenizer.config, []
        for i, mask in enumerate(masks):
            codes: Any = mask.get("codes") if isinstance(mask, dict) else None
            legal = isinstance(codes, list) and 1 <= len(codes) <= config.num_mask_tokens
            if not legal or not all(isinstance(c, int) and 0 <= c < config.codebook_size for c in codes):
                raise ValueError(
                    f"{PREDICTED}[{i}].codes: got {codes!r:.80}, expected 1 to {config.num_mask_tokens} integers below "
                    f"{config.codebook_size}"
                )
            size = check_size(mask.get("size"), f"{PREDICTED}[{i}].size")
            with torch.inference_mode():
                square = self.mask_tokenizer.decode(torch.tensor([codes], device=self.mask_tokenizer.device))[0]
            decoded.append({**mask, **to_rle(resize_square(square.cpu().numpy(), size, self.threshold, self.resize))})
        return {**row, PREDICTED: decoded}

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
