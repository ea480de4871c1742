"""Stage 2: LMM logits at mask positions -> code probabilities -> masks -> coarse-to-fine loss.

Works on the code columns of the logit rows that predict mask tokens, gathered by the caller; nothing as wide as the
vocabulary is copied here. Source: arXiv 2503.13026, section 3.3. Does not know of text, tokenizers and trainers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .mask_tokenizer.modeling import MaskTokenizer
from .mask_tokenizer.reconstruction_loss import (
    DICE_WEIGHT,
    coarse_sigma,
    coarse_target,
    draw_levels,
    mask_bce,
    mask_dice,
)

__all__ = ["HierarchicalMaskLoss", "MaskLosses", "coarse_target", "code_probabilities", "mask_bce", "mask_dice"]

LOGIT_SCALE = 2.0  # probabilities are softmax(2 x logits), in training as in inference
NUM_LEVELS = 3  # coarse levels drawn in a step


def code_probabilities(logits: Tensor, scale: float = LOGIT_SCALE) -> Tensor:
    """Probabilities over the codes.

    Args:
        logits: (..., v) any float dtype: the code columns only.
        scale: factor on the logits before the softmax.

    Returns:
        (..., v) float32, rows sum to 1.
    """
    return (logits.float() * scale).softmax(dim=-1)


@dataclass(frozen=True)
class MaskLosses:
    """Unweighted loss terms, () float32 each: BCE and Dice of the full prediction, and the hierarchical loss, which is
    BCE + dice_weight * Dice summed over coarse levels."""

    bce: Tensor
    dice: Tensor
    hierarchical: Tensor


class HierarchicalMaskLoss(nn.Module):
    """Mask loss on the full prediction plus the hierarchical one on random prefixes.

    Args:
        num_levels: prefixes drawn per step, without replacement; capped by the tokenizer's length.
        dice_weight: weight of Dice beside BCE.
    """

    def __init__(self, num_levels: int = NUM_LEVELS, dice_weight: float = DICE_WEIGHT):
        super().__init__()
        self.num_levels = num_levels
        self.dice_weight = dice_weight

    def forward(
        self,
        mask_tokenizer: MaskTokenizer,
        probabilities: Tensor,
        target: Tensor,
        weights: Tensor | None = None,
        levels: Tensor | None = None,
        full: bool = True,
        hierarchical: bool = True,
    ) -> MaskLosses:
        """Losses of a batch of masks.

        Args:
            mask_tokenizer: decodes; gradient flows into its de-tokenizer where that is trainable.
            probabilities: (b, k, v) float32 code probabilities, with gradient.
            target: (b, s, s) float in [0, 1].
            weights: (b,) float: per-mask weights; the loss is then a weighted sum of per-mask terms, which adds up
                over accumulated and distributed batches. None: means over the batch, as in the reference.
            levels: (l,) int64 prefix lengths instead of drawn ones.
            full, hierarchical: False skips a term, which is then a zero.
        """
        bce = dice = coarse = probabilities.new_zeros(())
        if full:
            prediction = mask_tokenizer.decode_probabilities(probabilities)
            bce, dice = mask_bce(prediction, target, weights), mask_dice(prediction, target, weights)
        if hierarchical and probabilities.shape[1] > 1:
            coarse = self._coarse(mask_tokenizer, probabilities, target, weights, levels)
        return MaskLosses(bce, dice, coarse)

    def _coarse(
        self,
        mask_tokenizer: MaskTokenizer,
        probabilities: Tensor,
        target: Tensor,
        weights: Tensor | None,
        levels: Tensor | None,
    ) -> Tensor:
        k = probabilities.shape[1]
        if levels is None:
            levels = draw_levels(min(self.num_levels, k - 1), k)
        count, batch = len(levels), len(target)
        # All levels go through the de-tokenizer as one batch; the tail's *probabilities* are zero, as in the paper.
        kept = torch.arange(k)[None, :] < levels[:, None]
        kept = kept.to(probabilities.device, probabilities.dtype)
        prefixes = (kept[:, None, :, None] * probabilities).flatten(0, 1)
        config = mask_tokenizer.config
        sigma = coarse_sigma(levels.float(), config.num_mask_tokens, config.image_size).to(target.device)
        coarse = coarse_target(target.expand(count, *target.shape), sigma=sigma[:, None].expand(count, batch))
        prediction = mask_tokenizer.decode_probabilities(prefixes).unflatten(0, (count, batch))
        return torch.stack(
            [
                mask_bce(p, t, weights) + self.dice_weight * mask_dice(p, t, weights)
                for p, t in zip(prediction, coarse, strict=True)
            ]
        ).sum()
