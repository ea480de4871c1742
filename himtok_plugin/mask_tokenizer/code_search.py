"""Search for the codes whose decoded mask is closest to the square (analysis by synthesis).

The encoder predicts all codes at once without decoding them. A small or briefly trained encoder therefore misses better
codes nearby (the amortization gap, arXiv 1801.03558). Coordinate descent finds many of them: position by position, each
of the few nearest codes is decoded, and the code with the closest mask is kept.

Contract: the mask of the codes found is never farther from the square than that of the nearest codes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from himtok_plugin.hierarchical_loss import bce_per_mask, dice_per_mask

SWEEPS = 2  # passes over all positions; nearly all of the gain comes from the first
DECODED_AT_ONCE = 32  # squares, because the convolutions of the de-tokenizer need memory


@torch.no_grad()
def search_codes(nearest: Tensor, squares: Tensor, decode: Callable[[Tensor], Tensor], sweeps: int = SWEEPS) -> Tensor:
    """Find codes whose decoded mask is close to the square, measured by BCE + Dice.

    Args:
        nearest: (b, k, c) int64, candidates for each position; the search starts with the first of them.
        squares: (b, s, s) float in [0, 1].
        decode: (n, k) int64 codes -> (n, s, s) float in [0, 1].
        sweeps: passes over all positions, at least 1; each decodes k * c masks per square.

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
            tried[:, :, position] = nearest[:, position]  # which include the current code
            chosen = _distances(decode, tried, squares).argmin(dim=1, keepdim=True)
            codes[:, position] = nearest[:, position].gather(1, chosen)[:, 0]
        if torch.equal(before, codes):
            break
    return codes


def choose_encoding_batch(batch: int, candidates: int) -> int:
    """Choose how many masks to encode at once, so that a search reports its progress often enough.

    More than `DECODED_AT_ONCE` candidates are decoded in several parts anyway, so smaller batches cost nothing.

    Args:
        batch: number of masks without a search.
        candidates: tried at each position; 1 is no search.
    """
    return batch if candidates == 1 else max(1, min(batch, DECODED_AT_ONCE // max(candidates, 1)))


def check_candidates(candidates: int, codebook_size: int) -> None:
    """Check the number of candidates per position.

    Raises:
        ValueError: it is not in [1, codebook_size].
    """
    if not 1 <= candidates <= codebook_size:
        raise ValueError(f"candidates={candidates}: expected 1 to {codebook_size}, the size of the codebook")


def _distances(decode: Callable[[Tensor], Tensor], codes: Tensor, squares: Tensor) -> Tensor:
    """(b, c, k) codes and (b, s, s) squares -> (b, c) float32, distances of the decoded masks from their squares."""
    count = codes.shape[1]
    owner = torch.arange(len(squares), device=squares.device).repeat_interleave(count)
    distances = []
    for own, part in zip(owner.split(DECODED_AT_ONCE), codes.flatten(0, 1).split(DECODED_AT_ONCE), strict=True):
        decoded, target = decode(part), squares[own]
        distances.append(bce_per_mask(decoded, target) + dice_per_mask(decoded, target))
    return torch.cat(distances).view(-1, count)
