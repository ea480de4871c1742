"""How well a mask tokenizer brings masks back, per number of tokens: its ceiling for any LMM on top of it.

Masks are compared at their own size, so the stretch to the square and back counts too. Does not know where masks come
from.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch

from .mask_tokenizer import MaskTokenizer
from .masks import from_square, to_square
from .metrics import SegmentationMetrics

TOKEN_COUNTS = (1, 2, 4, 8, 16, 32)
BATCH = 32


def token_counts(num_mask_tokens: int) -> list[int]:
    """The numbers of tokens that are measured: powers of two below k, and k."""
    return sorted({n for n in TOKEN_COUNTS if n < num_mask_tokens} | {num_mask_tokens})


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
        Number of tokens (powers of two below k, and k) -> what `SegmentationMetrics.compute` returns.
    """
    config = mask_tokenizer.config
    counts = token_counts(config.num_mask_tokens)
    metrics = {n: SegmentationMetrics(boundary=n == config.num_mask_tokens) for n in counts}
    remaining = iter(masks)
    while batch := list(islice(remaining, BATCH)):
        squares = torch.from_numpy(np.stack([to_square(mask, config.image_size) for mask in batch]))
        codes = mask_tokenizer.encode(squares.to(mask_tokenizer.device))
        for n in counts:
            for square, mask in zip(mask_tokenizer.decode(codes[:, :n]).cpu().numpy(), batch, strict=True):
                metrics[n].update(from_square(square, mask.shape, threshold), mask)
    return {n: metrics[n].compute() for n in counts}
