"""The mask loss of stage 2: code probabilities are decoded to masks and compared with targets from coarse to fine.

Contract: `code_probabilities` turns an LMM's logits of the codes into probabilities. `HierarchicalMaskLoss` decodes
them, and prefixes of them, and compares the masks with their targets. Its parts, `mask_bce`, `mask_dice`,
`coarse_target` and `draw_prefix_lengths`, also serve stage 1 and the code search. Nothing here copies from the device
to the host. Formulas and constants are those of HiMTok (arXiv 2503.13026, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = [
    "HierarchicalMaskLoss",
    "MaskLosses",
    "bce_per_mask",
    "coarse_sigma",
    "coarse_target",
    "code_probabilities",
    "dice_per_mask",
    "draw_prefix_lengths",
    "mask_bce",
    "mask_dice",
]

LOGIT_SCALE = 2.0  # probabilities are softmax(2 x logits), in training and at inference
NUM_LEVELS = 3  # prefix lengths drawn per step
PROBABILITY_CLAMP = 1e-6
DICE_EPS = 1e-6
DICE_WEIGHT = 0.25  # of Dice, relative to BCE
# sigma(n) = 100 / (n + 2) - 2 pixels, for 32 tokens and squares of 256 pixels.
SIGMA_NUMERATOR, SIGMA_OFFSET, SIGMA_SHIFT = 100.0, 2.0, 2.0
REFERENCE_TOKENS, REFERENCE_SIDE = 32, 256
SUPPORT_SIGMAS = 3  # the kernel extends ceil(3 sigma) pixels to either side
LEVEL_OFFSET = 9.0  # prefix lengths are drawn with p(n) proportional to 1 / (n + 9)


class SoftDecoder(Protocol):
    """The interface that the loss needs: a `MaskTokenizer`, or a wrapper of one whose weights are sharded."""

    @property
    def config(self) -> Any:
        """A `MaskTokenizerConfig`."""

    def decode_probabilities(self, probabilities: Tensor) -> Tensor:
        """(b, n, v) code probabilities -> (b, s, s) float32 in [0, 1]."""


def mask_bce(probabilities: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of probabilities, mean over pixels.

    Args:
        probabilities: (..., s, s) float in [0, 1]; clamped to [1e-6, 1 - 1e-6].
        target: float in [0, 1], of the same shape.
        weights: (...,) float, one per square. The result is then the weighted *sum* of the squares' means.

    Returns:
        () float32; zero for an empty batch.

    Raises:
        ValueError: the shapes do not match.
    """
    _check_shapes(probabilities, target, weights)
    if weights is not None:
        return (bce_per_mask(probabilities, target) * weights).sum()
    loss = _bce_of_pixels(probabilities, target)
    return loss.mean() if loss.numel() else loss.sum()


def bce_per_mask(probabilities: Tensor, target: Tensor) -> Tensor:
    """`mask_bce` of each square: two tensors (..., s, s) in [0, 1] -> (...,) float32."""
    return _bce_of_pixels(probabilities, target).mean(dim=(-2, -1))


def _bce_of_pixels(probabilities: Tensor, target: Tensor) -> Tensor:
    p = probabilities.float().clamp(PROBABILITY_CLAMP, 1 - PROBABILITY_CLAMP)
    t = target.float()
    return -(t * p.log() + (1 - t) * (1 - p).log())


def mask_dice(probabilities: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Dice loss, 1 - (2 I + eps) / (A + B + eps).

    Without `weights`, the sums run over the whole batch, as in the reference. Then the loss of a batch is not the sum
    of the losses of its parts. With `weights` (...,), Dice is computed per mask and the result is the weighted sum, so
    that accumulated and distributed batches give the same loss as one large batch.

    Returns:
        () float32; zero for an empty batch.

    Raises:
        ValueError: the shapes do not match.
    """
    _check_shapes(probabilities, target, weights)
    if weights is None:
        return _dice_over(probabilities, target, dims=None)
    return (dice_per_mask(probabilities, target) * weights).sum()


def dice_per_mask(probabilities: Tensor, target: Tensor) -> Tensor:
    """`mask_dice` of each square: two tensors (..., s, s) in [0, 1] -> (...,) float32."""
    return _dice_over(probabilities, target, dims=(-2, -1))


def _dice_over(probabilities: Tensor, target: Tensor, dims: tuple[int, int] | None) -> Tensor:
    p, t = probabilities.float(), target.float()
    intersection = (p * t).sum(dim=dims)
    total = p.sum(dim=dims) + t.sum(dim=dims)
    return 1 - (2 * intersection + DICE_EPS) / (total + DICE_EPS)


def _check_shapes(probabilities: Tensor, target: Tensor, weights: Tensor | None) -> None:
    """Reject shapes that differ, because broadcasting would hide the mistake."""
    if probabilities.shape != target.shape:
        raise ValueError(
            f"probabilities of shape {tuple(probabilities.shape)}, target of shape {tuple(target.shape)}: expected the "
            "same (..., s, s)"
        )
    if weights is not None and weights.shape != probabilities.shape[:-2]:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)}, probabilities of shape {tuple(probabilities.shape)}: expected "
            f"one for each square, {tuple(probabilities.shape[:-2])}"
        )


def coarse_sigma(
    num_tokens: int | Tensor, num_mask_tokens: int = REFERENCE_TOKENS, image_size: int = REFERENCE_SIDE
) -> float | Tensor:
    """Standard deviation in pixels of the blur for a prefix of `num_tokens`.

    The paper's formula is for 32 tokens and squares of 256 pixels. It is scaled for other tokenizers: the same fraction
    of the tokens gets a blur of the same fraction of the square.
    """
    share = num_tokens * (REFERENCE_TOKENS / num_mask_tokens)
    return (SIGMA_NUMERATOR / (share + SIGMA_OFFSET) - SIGMA_SHIFT) * (image_size / REFERENCE_SIDE)


def coarse_target(
    target: Tensor, num_tokens: int | Tensor | None = None, sigma: float | Tensor | None = None
) -> Tensor:
    """Blurred target of a prefix, divided by its maximum.

    Args:
        target: (..., s, s) float in [0, 1].
        num_tokens: prefix length n, for a blur of `coarse_sigma(n)`.
        sigma: blur in pixels, instead of `num_tokens`; () or one per square, with the leading shape of `target`. A
            square whose sigma is not positive is not blurred.

    Returns:
        float32, shape of `target`; a square without foreground stays zero.

    Raises:
        ValueError: both or neither of `num_tokens` and `sigma` are set, a length is below 1, or shapes do not match.
    """
    if (num_tokens is None) == (sigma is None):
        raise ValueError("coarse_target: expected either num_tokens or sigma")
    if num_tokens is not None:
        if isinstance(num_tokens, int) and num_tokens < 1:
            raise ValueError(f"num_tokens={num_tokens}: expected at least 1")
        sigma = coarse_sigma(num_tokens)
    t = target.float()
    sigma = torch.as_tensor(sigma, dtype=torch.float32, device=t.device)
    if sigma.ndim and sigma.shape != t.shape[:-2]:
        raise ValueError(
            f"sigma of shape {tuple(sigma.shape)}, target of shape {tuple(t.shape)}: expected one for all squares, or "
            f"one for each, {tuple(t.shape[:-2])}"
        )
    with torch.autocast(t.device.type, enabled=False):
        # The matrices are symmetric, so no transpose.
        blurred = _blur_matrix(sigma, t.shape[-2]) @ t @ _blur_matrix(sigma, t.shape[-1])
    return blurred / blurred.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def _blur_matrix(sigma: Tensor, side: int) -> Tensor:
    """(..., s, s) matrix that blurs a column by a Gaussian with zero padding.

    The Gaussian is separable. Unlike a convolution, two matrix products allow a different sigma for each square.
    """
    distance = torch.arange(side, device=sigma.device, dtype=torch.float32)
    distance = (distance[:, None] - distance[None, :]).abs()
    sigma = sigma[..., None, None]
    safe = sigma.clamp(min=1e-3)
    kernel = torch.exp(-0.5 * (distance / safe) ** 2) * (distance <= torch.ceil(SUPPORT_SIGMAS * safe))
    return torch.where(sigma > 0, kernel, (distance == 0).float())


def draw_prefix_lengths(count: int, num_mask_tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw distinct prefix lengths from 1 … k - 1, with p(n) proportional to 1 / (n + 9).

    They are drawn on the CPU, so that training steps do not wait for the device.

    Returns:
        (count,) int64 on the CPU.

    Raises:
        ValueError: there are fewer than `count` lengths.
    """
    if not 1 <= count <= num_mask_tokens - 1:
        raise ValueError(f"num_coarse_levels={count}: expected 1 to {num_mask_tokens - 1} for {num_mask_tokens} tokens")
    lengths = torch.arange(1, num_mask_tokens)
    drawn = torch.multinomial(1 / (lengths + LEVEL_OFFSET), count, replacement=False, generator=generator)
    return lengths[drawn]


def code_probabilities(logits: Tensor, scale: float = LOGIT_SCALE) -> Tensor:
    """Probabilities over the codes.

    Args:
        logits: (..., v) of any float dtype: the logits of the codes only.
        scale: factor on the logits before the softmax.

    Returns:
        (..., v) float32, which sum to 1.
    """
    return (logits.float() * scale).softmax(dim=-1)


@dataclass(frozen=True)
class MaskLosses:
    """Unweighted loss terms, () float32 each.

    Attributes:
        bce, dice: of the masks decoded from all codes.
        hierarchical: BCE + dice_weight * Dice, summed over the prefix lengths drawn.
    """

    bce: Tensor
    dice: Tensor
    hierarchical: Tensor


class HierarchicalMaskLoss(nn.Module):
    """Mask loss on masks decoded from all codes, and the hierarchical loss on masks decoded from random prefixes.

    Args:
        num_levels: prefix lengths drawn per step, without replacement; at most k - 1 are drawn.
        dice_weight: weight of Dice relative to BCE.
    """

    def __init__(self, num_levels: int = NUM_LEVELS, dice_weight: float = DICE_WEIGHT):
        super().__init__()
        self.num_levels = num_levels
        self.dice_weight = dice_weight

    def forward(
        self,
        mask_tokenizer: SoftDecoder,
        probabilities: Tensor,
        target: Tensor,
        weights: Tensor | None = None,
        levels: Tensor | None = None,
        full: bool = True,
        hierarchical: bool = True,
    ) -> MaskLosses:
        """Losses of a batch of masks.

        Args:
            mask_tokenizer: decodes the masks. Its de-tokenizer gets gradients if it is trainable.
            probabilities: (b, k, v) float32 code probabilities.
            target: (b, s, s) float in [0, 1].
            weights: (b,) float, one per mask. The losses are then weighted sums of terms per mask, which add up over
                accumulated and distributed batches. None: means over the batch, as in the reference.
            levels: (l,) int64 on the CPU, prefix lengths in [1, k) to use instead of random ones.
            full, hierarchical: False skips this term, which is zero then.

        Returns:
            The losses; zeros for an empty batch, for which nothing is decoded.

        Raises:
            ValueError: shapes do not match, or `levels` are out of range.
        """
        self._check(mask_tokenizer, probabilities, target, levels)
        if not len(target):
            zero = probabilities.float().sum()  # has a gradient function, as any other loss
            return MaskLosses(zero, zero, zero)
        bce = dice = coarse = probabilities.new_zeros(())
        if full:
            prediction = mask_tokenizer.decode_probabilities(probabilities)
            bce, dice = mask_bce(prediction, target, weights), mask_dice(prediction, target, weights)
        if hierarchical and probabilities.shape[1] > 1:
            coarse = self._hierarchical_loss(mask_tokenizer, probabilities, target, weights, levels)
        return MaskLosses(bce, dice, coarse)

    @staticmethod
    def _check(mask_tokenizer: SoftDecoder, probabilities: Tensor, target: Tensor, levels: Tensor | None) -> None:
        side = mask_tokenizer.config.image_size
        if probabilities.ndim != 3 or target.shape != (len(probabilities), side, side):
            raise ValueError(
                f"probabilities of shape {tuple(probabilities.shape)}, target of shape {tuple(target.shape)}: expected "
                f"(b, k, v) and (b, {side}, {side})"
            )
        if levels is None:
            return
        # The values are read here: on another device than the CPU, every training step would wait for it.
        if levels.device.type != "cpu" or levels.ndim != 1 or not len(levels) or levels.dtype != torch.int64:
            raise ValueError(
                f"levels of shape {tuple(levels.shape)}, {levels.dtype} on {levels.device}: expected (l,) int64 on the "
                "CPU"
            )
        if not all(1 <= n < probabilities.shape[1] for n in levels.tolist()):
            raise ValueError(f"levels {levels.tolist()}: expected 1 <= n < {probabilities.shape[1]}")

    def _hierarchical_loss(
        self,
        mask_tokenizer: SoftDecoder,
        probabilities: Tensor,
        target: Tensor,
        weights: Tensor | None,
        levels: Tensor | None,
    ) -> Tensor:
        k = probabilities.shape[1]
        if levels is None:
            levels = draw_prefix_lengths(min(self.num_levels, k - 1), k)
        count, batch = len(levels), len(target)
        # All prefixes are decoded as one batch. The *probabilities* after a prefix are zero, as in the paper.
        kept = torch.arange(k)[None, :] < levels[:, None]
        kept = kept.to(probabilities.device, probabilities.dtype)
        prefixes = (kept[:, None, :, None] * probabilities).flatten(0, 1)
        config = mask_tokenizer.config
        coarse = target.expand(count, *target.shape)
        if config.has_blurred_prefixes:
            sigma = torch.as_tensor(coarse_sigma(levels.float(), config.num_mask_tokens, config.image_size))
            coarse = coarse_target(coarse, sigma=sigma.to(target.device)[:, None].expand(count, batch))
        prediction = mask_tokenizer.decode_probabilities(prefixes).unflatten(0, (count, batch))
        return torch.stack(
            [
                mask_bce(p, t, weights) + self.dice_weight * mask_dice(p, t, weights)
                for p, t in zip(prediction, coarse, strict=True)
            ]
        ).sum()
