"""Loss terms between predicted and true squares, and the blurred targets of short prefixes.

Shared by stage 1 (`objective.py`), stage 2 (`hierarchical_loss.py`) and the search of codes (`code_search.py`).
Formulas and constants are those of HiMTok (arXiv 2503.13026, section 3.3). Does not know where predictions come from;
nothing here copies to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

PROBABILITY_CLAMP = 1e-6
DICE_EPS = 1e-6
DICE_WEIGHT = 0.25  # of the Dice term beside BCE
# sigma(n) = 100 / (n + 2) - 2 pixels, stated for 32 tokens and squares of 256.
SIGMA_NUMERATOR, SIGMA_OFFSET, SIGMA_SHIFT = 100.0, 2.0, 2.0
REFERENCE_TOKENS, REFERENCE_SIDE = 32, 256
SUPPORT_SIGMAS = 3  # the kernel reaches ceil(3 sigma) pixels to either side
LEVEL_OFFSET = 9.0  # prefix lengths are drawn with p(n) proportional to 1 / (n + 9)


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
