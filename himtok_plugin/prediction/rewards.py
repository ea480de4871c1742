"""Rewards of answers with masks for reinforcement learning: IoU, legal mask text, number of masks, no-target answers.

Contract: each reward takes answers as text and returns one number in [0, 1] per answer. Three rewards depend on the
text alone. `MaskIoUReward` decodes the codes of all answers together, on the mask tokenizer's device; it needs neither
images nor SAM.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from himtok_plugin.mask_text import MASK_TOKEN_PREFIX, MaskSpan, text_to_codes
from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.masks import from_square
from himtok_plugin.metrics.matching import matched_ious

from .predictor import MAX_BATCH

PREFIX_WEIGHT = 0.25  # share of the IoU reward for coarse prefixes; chosen here, not in the paper


def mask_format_reward(text: str, codebook_size: int | None = None, num_mask_tokens: int | None = None) -> float:
    """1 if every mask in the answer is complete and legal, else 0; an answer without a mask is legal.

    Args:
        text: the answer.
        codebook_size: v of the mask tokenizer; None accepts any code.
        num_mask_tokens: k of the mask tokenizer; None accepts the largest k of any mask tokenizer.
    """
    spans = _find_spans(text, codebook_size, num_mask_tokens)
    outside, last = [], 0
    for span in spans:
        outside.append(text[last : span.start])
        last = span.end
    legal = all(span.complete for span in spans) and MASK_TOKEN_PREFIX not in "".join([*outside, text[last:]])
    return float(legal)


def mask_count_reward(text: str, true: int) -> float:
    """Ratio of the number of masks in the answer and the true number, the smaller over the larger; 1 if both are 0.

    Args:
        text: the answer.
        true: number of true masks.
    """
    answered = len(_find_decodable(text, None, None))
    return min(answered, true) / max(answered, true) if max(answered, true) else 1.0


def no_target_reward(text: str, has_target: bool) -> float:
    """1 if the answer has a mask when there is a target, or none when there is no target; else 0.

    Args:
        text: the answer.
        has_target: whether any true mask has foreground.
    """
    return float(bool(_find_decodable(text, None, None)) == has_target)


class MaskIoUReward:
    """IoU between the masks of an answer and the true masks, with partial credit for coarse prefixes.

    Mask tokens are ordered coarse to fine, so a mask whose first tokens are right is partly right: a share of the
    reward is the mean IoU of the masks decoded from the first 1, 2, 4, … tokens. Several masks are matched with the
    true masks by the largest sum of IoU; every surplus or missing mask counts as an IoU of 0. If there is no target,
    the reward is 1 without a mask and 0 with any.

    Args:
        mask_tokenizer: decodes on its own device and in its own dtype, in evaluation mode.
        prefix_weight: share of the prefixes, in [0, 1]; 0: the reward is the IoU.
        threshold: probability from which a pixel is foreground.
    Raises:
        ValueError: `prefix_weight` out of range.
    """

    def __init__(
        self, mask_tokenizer: MaskTokenizer, prefix_weight: float = PREFIX_WEIGHT, threshold: float = 0.5
    ) -> None:
        if not 0 <= prefix_weight <= 1:
            raise ValueError(f"prefix_weight: got {prefix_weight!r}, expected a number in [0, 1]")
        self.mask_tokenizer = mask_tokenizer
        self.prefix_weight = prefix_weight
        self.threshold = threshold

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], targets: Sequence[Sequence[np.ndarray]]) -> list[float]:
        """Compute the rewards of answers.

        Args:
            texts: n answers.
            targets: for each answer the true masks, bool (h, w); none, or only empty ones, if there is no target.
        Returns:
            n rewards in [0, 1].
        """
        config = self.mask_tokenizer.config
        answers = [_find_decodable(text, config.codebook_size, config.num_mask_tokens) for text in texts]
        true = [[mask for mask in masks if mask.any()] for masks in targets]
        wanted = {
            tuple(span.codes[:n])
            for spans, masks in zip(answers, true, strict=True)
            if masks
            for span in spans
            for n in self._lengths(span)
        }
        squares = self._decode(sorted(wanted))
        return [self._reward(spans, masks, squares) for spans, masks in zip(answers, true, strict=True)]

    def _lengths(self, span: MaskSpan) -> list[int]:
        """Prefix lengths to decode: powers of two, then the whole mask."""
        total = len(span.codes)
        prefixes = [1 << i for i in range(total.bit_length()) if 1 << i < total] if self.prefix_weight else []
        return [*prefixes, total]

    def _reward(
        self, spans: list[MaskSpan], masks: list[np.ndarray], squares: dict[tuple[int, ...], np.ndarray]
    ) -> float:
        if not spans or not masks:
            return float(not spans and not masks)
        size = masks[0].shape
        most = max(len(spans), len(masks))

        def mean_iou(lengths: list[int]) -> float:
            codes = [tuple(span.codes[:n]) for span, n in zip(spans, lengths, strict=True)]
            predicted = [from_square(squares[c], size, self.threshold) for c in codes]
            return sum(matched_ious(predicted, masks)) / most

        lengths = [self._lengths(span) for span in spans]
        whole = mean_iou([n[-1] for n in lengths])
        # A mask with fewer tokens than the others is compared at its longest prefix on the remaining levels.
        levels = max(len(n) for n in lengths) - 1
        if not levels:
            return whole
        prefixes = [mean_iou([n[min(level, len(n) - 1)] for n in lengths]) for level in range(levels)]
        return (1 - self.prefix_weight) * whole + self.prefix_weight * float(np.mean(prefixes))

    def _decode(self, codes: list[tuple[int, ...]]) -> dict[tuple[int, ...], np.ndarray]:
        """Decode to float32 (s, s) each; codes of the same length share a batch."""
        groups: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        for each in codes:
            groups[len(each)].append(each)
        squares: dict[tuple[int, ...], np.ndarray] = {}
        training = self.mask_tokenizer.training
        self.mask_tokenizer.eval()
        try:
            for members in groups.values():
                for begin in range(0, len(members), MAX_BATCH):
                    batch = members[begin : begin + MAX_BATCH]
                    decoded = self.mask_tokenizer.decode(torch.tensor(batch, device=self.mask_tokenizer.device))
                    squares.update(zip(batch, decoded.float().cpu().numpy(), strict=True))
        finally:
            self.mask_tokenizer.train(training)
        return squares


def _find_spans(text: str, codebook_size: int | None, num_mask_tokens: int | None) -> list[MaskSpan]:
    limits: dict[str, Any] = {} if num_mask_tokens is None else {"max_tokens": num_mask_tokens}
    return text_to_codes(text, codebook_size, **limits)


def _find_decodable(text: str, codebook_size: int | None, num_mask_tokens: int | None) -> list[MaskSpan]:
    """The masks of an answer that can be decoded, that is with at least one code."""
    return [span for span in _find_spans(text, codebook_size, num_mask_tokens) if span.codes]
