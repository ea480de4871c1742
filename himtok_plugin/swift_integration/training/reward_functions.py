"""The rewards of prediction/rewards.py as reward functions of ms-swift.

Contract: `--reward_funcs mask_iou mask_format mask_count no_target` finds them in ms-swift's `orms`. The target masks
are those of the row's last answer, from its packed mask column (samples/mask_column.py). A row whose question asks for
no mask, such as a VQA row in a mixture, has the reward None, which GRPO skips. All rewards of a process share one mask
tokenizer, which is loaded on first use; the trainer's own copy can be sharded.
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
from himtok_plugin.masks import Masks
from himtok_plugin.prediction.rewards import MaskIoUReward, mask_count_reward, mask_format_reward, no_target_reward
from himtok_plugin.swift_integration.model.checkpoint_sidecar import load_mask_tokenizer, resolve_mask_tokenizer
from himtok_plugin.swift_integration.options.current_arguments import get_current_arguments
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn


def register_rewards() -> None:
    """Register the mask rewards with ms-swift; idempotent."""
    orms.update(mask_iou=MaskIoU, mask_format=MaskFormat, mask_count=MaskCount, no_target=NoTarget)


class MaskReward(ORM):
    """A reward for answers to questions that ask for masks."""

    def __call__(self, completions: Sequence[str], masks: Sequence[Any] | None = None, **columns) -> list[float | None]:
        """Compute the rewards of a batch.

        Args:
            completions: the answers.
            masks: the rows' packed mask columns, one per answer; None for a row without the column.
            columns: the rows' other columns. The messages show how many masks belong to questions.
        Returns:
            one reward per answer, None for a row that asks for no mask.
        Raises:
            ValueError: the dataset has no masks, or a mask cannot be read.
        """
        if masks is None:
            raise ValueError(
                "masks: got a dataset without this column, expected a dataset with masks for the mask rewards"
            )
        messages = columns.get("messages") or [[]] * len(completions)
        targets = {}
        for i, column in enumerate(masks):
            target = None if column is None else load_target_masks(column, messages[i])
            if target is not None:
                targets[i] = target
        rewards: list[float | None] = [None] * len(completions)
        if targets:
            found = self.rewards([completions[i] for i in targets], list(targets.values()))
            for i, reward in zip(targets, found, strict=True):
                rewards[i] = reward
        return rewards

    def rewards(self, texts: list[str], targets: list[list[np.ndarray]]) -> list[float]:
        """Compute the rewards of answers, each with its target masks, bool (h, w)."""
        raise NotImplementedError


class MaskIoU(MaskReward):
    """`mask_iou`: see `rewards.MaskIoUReward`."""

    def rewards(self, texts: list[str], targets: list[list[np.ndarray]]) -> list[float]:
        settings: Any = get_current_arguments()
        return MaskIoUReward(_load_own_mask_tokenizer(), settings.reward_prefix_weight, settings.mask_threshold)(
            texts, targets
        )


class MaskFormat(MaskReward):
    """`mask_format`: see `rewards.mask_format_reward`."""

    def rewards(self, texts: list[str], targets: list[list[np.ndarray]]) -> list[float]:
        config = _load_own_mask_tokenizer().config
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
        return [
            no_target_reward(text, any(mask.any() for mask in masks))
            for text, masks in zip(texts, targets, strict=True)
        ]


def load_target_masks(column: Any, messages: Sequence[dict[str, Any]]) -> list[np.ndarray] | None:
    """Load the masks that a row's last answer should have, which come after those of its questions.

    Args:
        column: the row's packed mask column.
        messages: the row's messages; the last one can be the sampled answer.
    Returns:
        bool (h, w) each, None if the question asks for no mask.
    Raises:
        ValueError: a mask cannot be read.
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
def _load_own_mask_tokenizer() -> Any:
    """Load the mask tokenizer of this process to its device, once."""
    settings: Any = get_current_arguments()
    model = getattr(settings, "model_dir", None) or settings.model
    source = resolve_mask_tokenizer(settings.mask_tokenizer, os.fspath(model), settings.adapter_folders)
    return load_mask_tokenizer(source).to(get_current_device()).eval().requires_grad_(False)
