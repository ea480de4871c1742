"""How well a mask tokenizer brings masks back, per number of tokens: its ceiling for any LMM on top of it.

Masks are compared at their own size, so the stretch to the square and back counts too. Does not know where masks come
from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.masks.sources import from_square, to_square

from .segmentation import SegmentationMetrics

TOKEN_COUNTS = (1, 2, 4, 8, 16, 32)
DECODE_BATCH = 32


def token_counts(num_mask_tokens: int) -> list[int]:
    """The numbers of tokens that are measured: powers of two below k, and k."""
    return sorted({n for n in TOKEN_COUNTS if n < num_mask_tokens} | {num_mask_tokens})


class ReconstructionMetrics:
    """Streaming scores of what a mask tokenizer decodes from its codes, per number of tokens.

    Args:
        num_mask_tokens: k of the mask tokenizer.
        threshold: probability from which a pixel is foreground.
    """

    def __init__(self, num_mask_tokens: int, threshold: float = 0.5):
        self.threshold = threshold
        # The boundary is the slowest number by far, and says little about a prefix.
        self.metrics = {n: SegmentationMetrics(boundary=n == num_mask_tokens) for n in token_counts(num_mask_tokens)}

    def __len__(self) -> int:
        """Masks so far."""
        return len(next(iter(self.metrics.values())))

    @torch.inference_mode()
    def update(self, mask_tokenizer: MaskTokenizer, codes: Tensor, masks: Sequence[np.ndarray]) -> None:
        """Add masks.

        Args:
            mask_tokenizer: in evaluation mode.
            codes: (b, k) int64, of the masks.
            masks: b masks, bool (h, w) each, of any sizes.
        """
        for n, metrics in self.metrics.items():
            for square, mask in zip(mask_tokenizer.decode(codes[:, :n]).cpu().numpy(), masks, strict=True):
                metrics.update(from_square(square, mask.shape, self.threshold), mask)

    def merge(self, other: ReconstructionMetrics) -> ReconstructionMetrics:
        """Add the masks of another accumulator of as many tokens to this one, and return this one."""
        for n, metrics in self.metrics.items():
            metrics.merge(other.metrics[n])
        return self

    def compute(self) -> dict[int, dict[str, float | int | None]]:
        """Number of tokens (powers of two below k, and k) -> what `SegmentationMetrics.compute` returns."""
        return {n: metrics.compute() for n, metrics in self.metrics.items()}


@torch.inference_mode()
def reconstruction_scores(
    mask_tokenizer: MaskTokenizer, masks: Iterable[np.ndarray], threshold: float = 0.5
) -> dict[int, dict[str, float | int | None]]:
    """Encode and decode masks.

    Args:
        mask_tokenizer: in evaluation mode.
        masks: bool (h, w) each, of any sizes.
        threshold: probability from which a pixel is foreground.

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
