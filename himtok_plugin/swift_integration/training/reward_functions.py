"""The rewards of `rewards.py` as ms-swift's reward functions.

Contract: `--reward_funcs mask_iou mask_format mask_count no_target` finds them in ms-swift's `orms`. The true masks are
those of the row's `masks` that its last answer speaks of; they reach a reward as the packed column of dataset.py. A row
that asks for no mask (a VQA row in a mixture, see `row_truths.py`) has no such reward: None, which GRPO leaves out. All
rewards of a process share one de-tokenizer, loaded when first needed: the trainer's own copy may be sharded. Does not
know trainers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from swift.rewards import ORM, orms
from swift.utils import get_current_device

from himtok_plugin.data.samples import find_file
from himtok_plugin.evaluation.ground_truth import ASKS_FOR_MASKS, select_answer_masks
from himtok_plugin.masks.sources import Masks
from himtok_plugin.prediction.rewards import MaskIoUReward, mask_count_reward, mask_format_reward, no_target_reward
from himtok_plugin.swift_integration.model.checkpoint_sidecar import load_mask_tokenizer, resolve_mask_tokenizer
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn


def register_rewards() -> None:
    """Make the mask rewards known to ms-swift; idempotent."""
    orms.update(mask_iou=MaskIoU, mask_format=MaskFormat, mask_count=MaskCount, no_target=NoTarget)


class MaskReward(ORM):
    """A reward of answers to rows with masks."""

    def __call__(self, completions: Sequence[str], masks: Sequence[Any] | None = None, **columns) -> list[float | None]:
        """Rewards of a batch.

        Args:
            completions: the answers.
            masks: the rows' packed masks, one per answer, None for a row without the column.
            columns: the rows' other columns; of these `messages` says how many masks are the questions'.
        Raises:
            ValueError: the dataset has no masks, or one that cannot be read.
        """
        if masks is None:
            raise ValueError(
                "masks: got a dataset without this column, expected a dataset with masks for the mask rewards"
            )
        messages = columns.get("messages") or [[]] * len(completions)
        targets = [None if column is None else true_masks(column, messages[i]) for i, column in enumerate(masks)]
        rows = [i for i, target in enumerate(targets) if target is not None]
        rewards: list[float | None] = [None] * len(completions)
        if rows:
            found = self.rewards([completions[i] for i in rows], [targets[i] for i in rows])
            for i, reward in zip(rows, found, strict=True):
                rewards[i] = reward
        return rewards

    def rewards(self, texts: list[str], targets: list[list[np.ndarray]]) -> list[float]:
        """Rewards of answers, each with its true masks, bool (h, w)."""
        raise NotImplementedError


class MaskIoU(MaskReward):
    """`mask_iou`: see `rewards.MaskIoUReward`."""

    def rewards(self, texts: list[str], targets: list[list[np.ndarray]]) -> list[float]:
        settings = get_current_arguments()
        return MaskIoUReward(_mask_tokenizer(), settings.reward_prefix_weight, settings.mask_threshold)(texts, targets)


class MaskFormat(MaskReward):
    """`mask_format`: see `rewards.mask_format_reward`."""

    def rewards(self, texts: list[str], targets: list[list[np.ndarray]]) -> list[float]:
        config = _mask_tokenizer().config
        return [mask_format_reward(text, config.codebook_size, config.num_mask_tokens) for text in texts]


class MaskCount(MaskReward):
    """`mask_count`: see `rewards.mask_count_reward`."""

    def rewards(self, texts: list[str], targets: list[list[np.ndarray]]) -> list[float]:
        return [
            mask_count_reward(text, sum(bool(mask.any()) for mask in masks))
            for text, masks in zip(texts, targets, strict=True)
        ]


class NoTarget(MaskReward):
    """`no_target`: see `rewards.no_target_reward`."""

    def rewards(self, texts: list[str], targets: list[list[np.ndarray]]) -> list[float]:
        return [no_target_reward(text, any(mask.any() for mask in masks)) for text, masks in zip(texts, targets, strict=True)]


def true_masks(column: Any, messages: Sequence[dict[str, Any]]) -> list[np.ndarray] | None:
    """The masks that a row's last answer should have: its masks after those of what was asked.

    Args:
        column: the row's packed masks.
        messages: the row's messages; the last one may be the sampled answer.
    Returns:
        None where no mask was asked for.
    Raises:
        ValueError: a mask that cannot be read.
    """
    packed = MaskColumn.parse(column)
    sources = select_answer_masks(packed.masks, messages, packed.further.get(ASKS_FOR_MASKS))
    if not sources:
        return sources
    try:
        return list(Masks.load([find_file(source) for source in sources]))
    except ValueError as error:
        raise ValueError(f"{packed.name}: {error}") from error


@cache
def _mask_tokenizer():
    """This process's own de-tokenizer, on its device."""
    settings = get_current_arguments()
    model = getattr(settings, "model_dir", None) or settings.model
    source = resolve_mask_tokenizer(settings.mask_tokenizer, os.fspath(model), settings.adapter_folders)
    return load_mask_tokenizer(source).to(get_current_device()).eval().requires_grad_(False)
