"""Stage 2: LMM logits at mask positions -> code probabilities -> masks -> coarse-to-fine loss.

Works on logits that are shifted already: row i predicts label i. Which positions hold mask tokens is read off the
labels, never off the layout of the batch, so packed and trimmed sequences need nothing special. Only the code columns
of those rows are copied. Source: arXiv 2503.13026, section 3.3. Does not know of text, tokenizers and trainers.
"""

from __future__ import annotations

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

__all__ = ["HierarchicalMaskLoss", "coarse_target", "code_probabilities", "mask_bce", "mask_dice", "mask_positions"]

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


def mask_positions(labels: Tensor, first_code_id: int, codebook_size: int) -> Tensor:
    """Flat positions of the mask tokens' codes.

    Args:
        labels: (...) int64; anything outside [first_code_id, first_code_id + codebook_size) is no code.

    Returns:
        (m,) int64 positions in `labels.flatten()`, in order. Its length is data, so this waits for the device: once
        a step, for the whole batch.
    """
    flat = labels.flatten()
    return ((flat >= first_code_id) & (flat < first_code_id + codebook_size)).nonzero().flatten()


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
    ) -> tuple[Tensor, Tensor]:
        """Both losses of a batch of masks.

        Args:
            mask_tokenizer: decodes; gradient flows into its de-tokenizer where that is trainable.
            probabilities: (b, k, v) float32 code probabilities, with gradient.
            target: (b, s, s) float in [0, 1].
            weights: (b,) float: per-mask weights; the loss is then a weighted sum of per-mask terms, which adds up
                over accumulated and distributed batches. None: means over the batch, as in the reference.
            levels: (l,) int64 prefix lengths instead of drawn ones.
            full, hierarchical: False skips a term, which is then a zero.

        Returns:
            mask loss, hierarchical loss (summed over levels): () float32 each.
        """
        zero = probabilities.new_zeros(())
        k = probabilities.shape[1]
        mask_loss = self._term(mask_tokenizer.decode_probabilities(probabilities), target, weights) if full else zero
        if not hierarchical or k < 2:
            return mask_loss, zero
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
        losses = [self._term(p, t, weights) for p, t in zip(prediction, coarse, strict=True)]
        return mask_loss, torch.stack(losses).sum()

    def _term(self, prediction: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        return mask_bce(prediction, target, weights) + self.dice_weight * mask_dice(prediction, target, weights)
