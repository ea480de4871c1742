"""The start of a mask tokenizer of the code scheme "box": principal components of shapes, and codebooks by k-means."""

from __future__ import annotations

import torch
from torch import Tensor

KMEANS_ITERATIONS = 12
ASSIGNED_AT_ONCE = 16384  # points, because all distances to the centres are in memory


@torch.no_grad()
def fit_components(canvases: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Principal components of canvases.

    Args:
        canvases: (m, c, c) float in [0, 1]. With fewer than `count`, the last components have no variance.
        count: number of components, at most c c.

    Returns:
        The mean canvas (c c,) and orthonormal components (count, c c), float32, those with most variance first.
    """
    pixels = canvases.flatten(1).float()
    mean = pixels.mean(dim=0)
    centred = pixels - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending order
    return mean, vectors[:, -count:].flip(1).T.contiguous()


@torch.no_grad()
def fit_residual_codebooks(points: Tensor, tokens: int, codebook_size: int) -> list[Tensor]:
    """Cluster points, then what is left of them after subtracting the centres, and so on.

    Args:
        points: (m, d) float32.
        tokens: number of codebooks.
        codebook_size: v, code vectors in each.

    Returns:
        `tokens` tensors (v, d) float32.
    """
    rest, codebooks = points.clone(), []
    for _ in range(tokens):
        centres = kmeans(rest, codebook_size)
        rest -= centres[_assign(rest, centres)]
        codebooks.append(centres)
    return codebooks


def kmeans(points: Tensor, count: int, iterations: int = KMEANS_ITERATIONS) -> Tensor:
    """Cluster points by their squared distance.

    Args:
        points: (m, d) float32.
        count: number of centres. If there are fewer points, some centres are equal.
        iterations: number of assignments and updates.

    Returns:
        (count, d) float32. Centres without points are moved to random points.
    """
    centres = points[torch.randperm(len(points), device=points.device)[:count]]
    centres = torch.cat([centres, points[torch.randint(len(points), (count - len(centres),), device=points.device)]])
    for _ in range(iterations):
        nearest = _assign(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=count)[:, None]
        spare = points[torch.randint(len(points), (count,), device=points.device)]
        centres = torch.where(sizes > 0, sums / sizes.clamp(min=1), spare)
    return centres


def _assign(points: Tensor, centres: Tensor) -> Tensor:
    offsets = centres.square().sum(dim=1) / 2
    return torch.cat([(part @ centres.T - offsets).argmax(dim=1) for part in points.split(ASSIGNED_AT_ONCE)])
