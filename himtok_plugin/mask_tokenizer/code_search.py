"""Codes chosen by the mask that they decode to: analysis by synthesis, beside the encoder's nearest codes.

An encoder guesses all codes at once and never sees what becomes of them; a small one, or one trained briefly, often
guesses codes next to better ones (the gap of amortised inference, arXiv 1801.03558). Coordinate descent closes much of
it: position by position, the nearest few codes are decoded in place, and the one stays whose mask is closest.

Contract: `search_codes` makes codes of squares, never farther from them than the nearest codes are. Does not know how
a tokenizer is trained.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from himtok_plugin.hierarchical_loss import bce_of_each, dice_of_each

SWEEPS = 2  # over all positions: the first brings nearly all of the gain
DECODED_AT_ONCE = 32  # squares; the convolutions of the de-tokenizer need memory


@torch.no_grad()
def search_codes(nearest: Tensor, squares: Tensor, decode: Callable[[Tensor], Tensor], sweeps: int = SWEEPS) -> Tensor:
    """Codes whose mask is close to the square, by BCE + Dice at full length.

    Args:
        nearest: (b, k, c) int64, the codes tried at each position; the search begins with the first of them.
        squares: (b, s, s) float in [0, 1].
        decode: (n, k) int64 codes -> (n, s, s) float in [0, 1].
        sweeps: passes over the positions, at least 1; each decodes k * c masks per square.

    Returns:
        (b, k) int64.

    Raises:
        ValueError: `sweeps` out of range.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps={sweeps}: expected at least 1")
    candidates = nearest.shape[2]
    codes = nearest[:, :, 0].clone()
    for _ in range(sweeps):
        before = codes.clone()
        for position in range(codes.shape[1]):
            tried = codes[:, None].repeat(1, candidates, 1)  # (b, candidates, k)
            tried[:, :, position] = nearest[:, position]  # the code that stands there is one of them
            chosen = _distances(decode, tried, squares).argmin(dim=1, keepdim=True)
            codes[:, position] = nearest[:, position].gather(1, chosen)[:, 0]
        if torch.equal(before, codes):
            break
    return codes


def check_candidates(candidates: int, codebook_size: int) -> None:
    """
    Raises:
        ValueError: there are not so many codes to try.
    """
    if not 1 <= candidates <= codebook_size:
        raise ValueError(f"candidates={candidates}: expected 1 to {codebook_size}, the size of the codebook")


def _distances(decode: Callable[[Tensor], Tensor], codes: Tensor, squares: Tensor) -> Tensor:
    """(b, c, k) codes and (b, s, s) squares -> (b, c) float32: how far the mask of each choice is from its square."""
    count = codes.shape[1]
    owner = torch.arange(len(squares), device=squares.device).repeat_interleave(count)
    distances = []
    for own, part in zip(owner.split(DECODED_AT_ONCE), codes.flatten(0, 1).split(DECODED_AT_ONCE), strict=True):
        decoded, target = decode(part), squares[own]
        distances.append(bce_of_each(decoded, target) + dice_of_each(decoded, target))
    return torch.cat(distances).view(-1, count)
