"""What an answer's masks are worth in reinforcement learning: true IoU, legal text, number of masks, no-target answers.

Purpose: the rewards of `swift rlhf --rlhf_type grpo`, and of whoever else learns from sampled answers.
Contract: text in, one number in [0, 1] per answer out. The text alone decides three of the rewards; `MaskIoUReward`
decodes the codes as written, with the de-tokenizer on the device that it is on, all answers together. Neither images
nor SAM are needed. Does not know ms-swift and how answers are sampled.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from himtok_plugin.mask_text import MASK_TOKEN_PREFIX, MaskSpan, text_to_codes
from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.masks.sources import from_square
from himtok_plugin.metrics.matching import matched_ious

from .predictor import MAX_BATCH

PREFIX_WEIGHT = 0.25  # share of the IoU reward that coarse prefixes earn; a choice, not the paper's


def mask_format_reward(text: str, codebook_size: int | None = None, num_mask_tokens: int | None = None) -> float:
    """1 if every mask in the answer is written to its end and legal, else 0; an answer without a mask is legal.

    Args:
        text: the answer.
        codebook_size, num_mask_tokens: v and k of the mask tokenizer; None accepts any codes, and the most tokens that
            there are.
    """
    spans = _spans(text, codebook_size, num_mask_tokens)
    outside, last = [], 0
    for span in spans:
        outside.append(text[last : span.start])
        last = span.end
    legal = all(span.complete for span in spans) and MASK_TOKEN_PREFIX not in "".join([*outside, text[last:]])
    return float(legal)


def mask_count_reward(text: str, true: int) -> float:
    """How near the number of masks in the answer comes to the true one: their ratio, the smaller over the larger.

    Args:
        text: the answer.
        true: number of true masks; 1.0 if both are 0.
    """
    answered = len(_answered(text, None, None))
    return min(answered, true) / max(answered, true) if max(answered, true) else 1.0


def no_target_reward(text: str, has_target: bool) -> float:
    """1 if the answer has a mask exactly where there is a target, else 0: the mean of N-acc and T-acc, so to speak.

    Args:
        text: the answer.
        has_target: whether a true mask has any foreground.
    """
    return float(bool(_answered(text, None, None)) == has_target)


class MaskIoUReward:
    """IoU of the masks that answers spell with the true ones, with partial credit for coarse prefixes.

    A mask is written coarse to fine, so one whose first tokens are right is on its way: a share of the reward is the
    mean IoU of what prefixes of 1, 2, 4, … tokens decode to. Several masks are matched with the true ones by the
    largest sum of IoU; one too many or too few counts as an IoU of 0. Without a target an answer without a mask earns
    1, any mask 0.

    Args:
        mask_tokenizer: decodes, on the device and in the dtype it has; it is used in evaluation mode.
        prefix_weight: share of the prefixes, in [0, 1]; 0 makes the reward the IoU itself.
        threshold: probability from which a pixel is foreground.
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
        """Rewards of answers.

        Args:
            texts: n answers.
            targets: the true masks of each, bool (h, w); none, or only empty ones, where there is no target.
        Returns:
            n numbers in [0, 1].
        """
        config = self.mask_tokenizer.config
        answers = [_answered(text, config.codebook_size, config.num_mask_tokens) for text in texts]
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
        """Numbers of tokens that are decoded: all of them last, powers of two before."""
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
        # A mask that ends before the others keeps its last prefix: it says no more than that.
        levels = max(len(n) for n in lengths) - 1
        if not levels:
            return whole
        prefixes = [mean_iou([n[min(level, len(n) - 1)] for n in lengths]) for level in range(levels)]
        return (1 - self.prefix_weight) * whole + self.prefix_weight * float(np.mean(prefixes))

    def _decode(self, codes: list[tuple[int, ...]]) -> dict[tuple[int, ...], np.ndarray]:
        """float32 (s, s) of each; those of one length share a batch."""
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


def _spans(text: str, codebook_size: int | None, num_mask_tokens: int | None) -> list[MaskSpan]:
    limits: dict[str, Any] = {} if num_mask_tokens is None else {"max_tokens": num_mask_tokens}
    return text_to_codes(text, codebook_size, **limits)


def _answered(text: str, codebook_size: int | None, num_mask_tokens: int | None) -> list[MaskSpan]:
    """The masks of an answer that can be decoded: those with at least one code."""
    return [span for span in _spans(text, codebook_size, num_mask_tokens) if span.codes]
