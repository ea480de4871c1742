"""Stage 2's loss: code probabilities -> masks -> coarse-to-fine loss, and the loss terms that stage 1 shares with it.

Contract: `code_probabilities` turns an LMM's logits of the code columns into probabilities; `HierarchicalMaskLoss`
decodes them and compares full masks and prefixes with their targets. `mask_bce`, `mask_dice`, `coarse_target` and
`draw_levels` are the parts, which stage 1's objective and the code search use as well. Nothing here copies to the host.
Formulas and constants are those of HiMTok (arXiv 2503.13026, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = [
    "HierarchicalMaskLoss",
    "MaskLosses",
    "bce_of_each",
    "coarse_sigma",
    "coarse_target",
    "code_probabilities",
    "dice_of_each",
    "draw_levels",
    "mask_bce",
    "mask_dice",
]

LOGIT_SCALE = 2.0  # probabilities are softmax(2 x logits), in training as in inference
NUM_LEVELS = 3  # coarse levels drawn in a step
PROBABILITY_CLAMP = 1e-6
DICE_EPS = 1e-6
DICE_WEIGHT = 0.25  # of the Dice term beside BCE
# sigma(n) = 100 / (n + 2) - 2 pixels, stated for 32 tokens and squares of 256.
SIGMA_NUMERATOR, SIGMA_OFFSET, SIGMA_SHIFT = 100.0, 2.0, 2.0
REFERENCE_TOKENS, REFERENCE_SIDE = 32, 256
SUPPORT_SIGMAS = 3  # the kernel reaches ceil(3 sigma) pixels to either side
LEVEL_OFFSET = 9.0  # prefix lengths are drawn with p(n) proportional to 1 / (n + 9)


class SoftDecoder(Protocol):
    """What the loss needs of a mask tokenizer: `MaskTokenizer`, or one whose weights are sharded over processes."""

    @property
    def config(self) -> Any:
        """A `MaskTokenizerConfig`."""

    def decode_probabilities(self, probabilities: Tensor) -> Tensor:
        """(b, n, v) code probabilities -> (b, s, s) float32 in [0, 1]."""


def mask_bce(probabilities: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy of probabilities, mean over pixels.

    Args:
        probabilities: (..., s, s) float in [0, 1]; clamped to [1e-6, 1 - 1e-6].
        target: the same shape, float in [0, 1].
        weights: (...,) float, one per square: the result is then the weighted *sum* of each square's mean.

    Returns:
        () float32; zero for no square.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check_shapes(probabilities, target, weights)
    if weights is not None:
        return (bce_of_each(probabilities, target) * weights).sum()
    loss = _bce_of_pixels(probabilities, target)
    return loss.mean() if loss.numel() else loss.sum()


def bce_of_each(probabilities: Tensor, target: Tensor) -> Tensor:
    """`mask_bce` of every square by itself: (..., s, s) in [0, 1] twice, of one shape -> (...,) float32."""
    return _bce_of_pixels(probabilities, target).mean(dim=(-2, -1))


def _bce_of_pixels(probabilities: Tensor, target: Tensor) -> Tensor:
    p = probabilities.float().clamp(PROBABILITY_CLAMP, 1 - PROBABILITY_CLAMP)
    t = target.float()
    return -(t * p.log() + (1 - t) * (1 - p).log())


def mask_dice(probabilities: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Dice loss, 1 - (2 I + eps) / (A + B + eps).

    Without `weights` the sums run over the whole batch, as in the reference. That is no sum of per-mask terms, so
    a batch and its halves disagree; with `weights` (...,) every mask gets a Dice of its own and the result is their
    weighted sum, which accumulated or distributed batches need in order to agree with one big batch.

    Returns:
        () float32; zero for no square.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check_shapes(probabilities, target, weights)
    if weights is None:
        return _dice_over(probabilities, target, dims=None)
    return (dice_of_each(probabilities, target) * weights).sum()


def dice_of_each(probabilities: Tensor, target: Tensor) -> Tensor:
    """`mask_dice` of every square by itself: (..., s, s) in [0, 1] twice, of one shape -> (...,) float32."""
    return _dice_over(probabilities, target, dims=(-2, -1))


def _dice_over(probabilities: Tensor, target: Tensor, dims: tuple[int, int] | None) -> Tensor:
    p, t = probabilities.float(), target.float()
    intersection = (p * t).sum(dim=dims)
    total = p.sum(dim=dims) + t.sum(dim=dims)
    return 1 - (2 * intersection + DICE_EPS) / (total + DICE_EPS)


def _check_shapes(probabilities: Tensor, target: Tensor, weights: Tensor | None) -> None:
    """Broadcasting would make a number of nearly any two shapes."""
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
    """Blur in pixels for a prefix of `num_tokens`.

    The formula is stated for 32 tokens on squares of 256; other tokenizers scale it: the same share of the tokens is
    blurred over the same share of the square.
    """
    share = num_tokens * (REFERENCE_TOKENS / num_mask_tokens)
    return (SIGMA_NUMERATOR / (share + SIGMA_OFFSET) - SIGMA_SHIFT) * (image_size / REFERENCE_SIDE)


def coarse_target(
    target: Tensor, num_tokens: int | Tensor | None = None, sigma: float | Tensor | None = None
) -> Tensor:
    """Blurred target of a prefix, divided by its own maximum.

    Args:
        target: (..., s, s) float in [0, 1].
        num_tokens: prefix length n; the blur is then `coarse_sigma(n)`.
        sigma: blur in pixels instead of `num_tokens`; () or the leading shape of `target`, one per square. A sigma
            that is not positive leaves the square as it is.

    Returns:
        Shape of `target`, float32; a square without foreground stays zero.

    Raises:
        ValueError: both or none of `num_tokens` and `sigma`, a length below 1, or shapes that do not fit each other.
    """
    if (num_tokens is None) == (sigma is None):
        raise ValueError("coarse_target: give either num_tokens or sigma")
    if sigma is None:
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
    """(..., s, s) matrix that blurs a column: the separable Gaussian with zero padding is two small products,
    which unlike a convolution allow a sigma of its own for every square of a batch."""
    distance = torch.arange(side, device=sigma.device, dtype=torch.float32)
    distance = (distance[:, None] - distance[None, :]).abs()
    sigma = sigma[..., None, None]
    safe = sigma.clamp(min=1e-3)
    kernel = torch.exp(-0.5 * (distance / safe) ** 2) * (distance <= torch.ceil(SUPPORT_SIGMAS * safe))
    return torch.where(sigma > 0, kernel, (distance == 0).float())


def draw_levels(count: int, num_mask_tokens: int, generator: torch.Generator | None = None) -> Tensor:
    """(count,) int64 on the CPU: distinct prefix lengths in 1 ... k - 1, p(n) proportional to 1 / (n + 9).

    Drawn on the CPU so that no step waits for the device; every process may pass its own generator.

    Raises:
        ValueError: fewer than `count` lengths exist.
    """
    if not 1 <= count <= num_mask_tokens - 1:
        raise ValueError(f"num_coarse_levels={count}: expected 1 to {num_mask_tokens - 1} for {num_mask_tokens} tokens")
    lengths = torch.arange(1, num_mask_tokens)
    drawn = torch.multinomial(1 / (lengths + LEVEL_OFFSET), count, replacement=False, generator=generator)
    return lengths[drawn]


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
            mask_tokenizer: decodes; gradient flows into its de-tokenizer where that is trainable.
            probabilities: (b, k, v) float32 code probabilities, with gradient.
            target: (b, s, s) float in [0, 1].
            weights: (b,) float: per-mask weights; the loss is then a weighted sum of per-mask terms, which adds up
                over accumulated and distributed batches. None: means over the batch, as in the reference.
            levels: (l,) int64 prefix lengths in [1, k), on the CPU, instead of drawn ones.
            full, hierarchical: False skips a term, which is then a zero.

        Returns:
            Zeros for no mask; nothing is decoded then.

        Raises:
            ValueError: shapes that do not fit each other, or `levels` out of range.
        """
        self._check(mask_tokenizer, probabilities, target, levels)
        if not len(target):
            nothing = probabilities.float().sum()  # a zero that may be differentiated like any loss
            return MaskLosses(nothing, nothing, nothing)
        bce = dice = coarse = probabilities.new_zeros(())
        if full:
            prediction = mask_tokenizer.decode_probabilities(probabilities)
            bce, dice = mask_bce(prediction, target, weights), mask_dice(prediction, target, weights)
        if hierarchical and probabilities.shape[1] > 1:
            coarse = self._coarse(mask_tokenizer, probabilities, target, weights, levels)
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
        # Read here, so lengths on another device would make every step wait for it.
        if levels.device.type != "cpu" or levels.ndim != 1 or not len(levels) or levels.dtype != torch.int64:
            raise ValueError(
                f"levels of shape {tuple(levels.shape)}, {levels.dtype} on {levels.device}: expected (l,) int64 on the "
                "CPU"
            )
        if not all(1 <= n < probabilities.shape[1] for n in levels.tolist()):
            raise ValueError(f"levels {levels.tolist()}: expected 1 <= n < {probabilities.shape[1]}, shorter prefixes")

    def _coarse(
        self,
        mask_tokenizer: SoftDecoder,
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
