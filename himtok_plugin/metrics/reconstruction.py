"""How well a mask tokenizer reconstructs masks, by number of tokens: an upper bound for any LMM that uses it.

Masks are compared at their own size, so the resizing to the square and back is included.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.masks import from_square, to_square

from .segmentation import SegmentationMetrics

TOKEN_COUNTS = (1, 2, 4, 8, 16, 32)
DECODE_BATCH = 32


def token_counts(num_mask_tokens: int) -> list[int]:
    """The numbers of tokens to measure: powers of two below k, and k."""
    return sorted({n for n in TOKEN_COUNTS if n < num_mask_tokens} | {num_mask_tokens})


class ReconstructionMetrics:
    """Streaming segmentation metrics of reconstructed masks, by number of tokens.

    Args:
        num_mask_tokens: k of the mask tokenizer.
        threshold: minimum probability of foreground pixels.
    """

    def __init__(self, num_mask_tokens: int, threshold: float = 0.5):
        self.threshold = threshold
        # Boundary metrics are by far the slowest and say little about prefixes.
        self.metrics = {n: SegmentationMetrics(boundary=n == num_mask_tokens) for n in token_counts(num_mask_tokens)}

    def __len__(self) -> int:
        """Number of masks."""
        return len(next(iter(self.metrics.values())))

    @torch.inference_mode()
    def update(self, mask_tokenizer: MaskTokenizer, codes: Tensor, masks: Sequence[np.ndarray]) -> None:
        """Add masks.

        Args:
            mask_tokenizer: in evaluation mode.
            codes: (b, k) int64, codes of the masks.
            masks: b masks, bool (h, w) each, of any sizes.
        """
        for n, metrics in self.metrics.items():
            for square, mask in zip(mask_tokenizer.decode(codes[:, :n]).cpu().numpy(), masks, strict=True):
                metrics.update(from_square(square, mask.shape, self.threshold), mask)

    def merge(self, other: ReconstructionMetrics) -> ReconstructionMetrics:
        """Add the masks of another accumulator with the same number of tokens to this one, and return this one."""
        for n, metrics in self.metrics.items():
            metrics.merge(other.metrics[n])
        return self

    def compute(self) -> dict[int, dict[str, float | int | None]]:
        """The result of `SegmentationMetrics.compute`, by number of tokens."""
        return {n: metrics.compute() for n, metrics in self.metrics.items()}


@torch.inference_mode()
def reconstruction_scores(
    mask_tokenizer: MaskTokenizer, masks: Iterable[np.ndarray], threshold: float = 0.5
) -> dict[int, dict[str, float | int | None]]:
    """Encode and decode masks and compare them with the originals.

    Args:
        mask_tokenizer: in evaluation mode.
        masks: bool (h, w) each, of any sizes.
        threshold: minimum probability of foreground pixels.

    Returns:
        See `ReconstructionMetrics.compute`.
    """
    config = mask_tokenizer.config
    metrics = ReconstructionMetrics(config.num_mask_tokens, threshold)
    remaining = iter(masks)
    while batch := list(islice(remaining, DECODE_BATCH)):
        squares = torch.from_numpy(np.stack([to_square(mask, config.image_size) for mask in batch]))
        metrics.update(mask_tokenizer, mask_tokenizer.encode(squares.to(mask_tokenizer.device)), batch)
    return metrics.compute()
