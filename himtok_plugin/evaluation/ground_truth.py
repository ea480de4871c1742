"""The ground truth of a sample's last answer: its masks and boxes.

Inference results, evaluation in training, rewards and benchmarks all use this rule. A sample whose question asks for no
mask (VQA in a mixture) must not be scored as a no-target sample with a right answer.

Contract: masks and boxes are returned as the sample holds them, no file is read. None means: nothing to score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from himtok_plugin.mask_text import BOX_PLACEHOLDER, MASK_PLACEHOLDER

ASKS_FOR_MASKS = "asks_for_masks"  # column for samples whose masks and text leave it open

Messages = Sequence[Mapping[str, Any]]


def question_messages(messages: Messages) -> Messages:
    """All messages except a last one of the assistant, whether it is the true or a generated answer."""
    return messages[:-1] if messages and messages[-1].get("role") == "assistant" else messages


def count_in_questions(messages: Messages, placeholder: str) -> int:
    """Count a placeholder in `question_messages`."""
    contents = (message.get("content") for message in question_messages(messages))
    return sum(content.count(placeholder) for content in contents if isinstance(content, str))


def select_answer_masks(masks: Sequence[Any] | None, messages: Messages, asks: bool | None = None) -> list[Any] | None:
    """Select the true masks of a sample's last answer.

    Args:
        masks: all masks of the sample, in order: those of questions and earlier answers come first. None if the sample
            has no such column.
        messages: of the sample.
        asks: its `asks_for_masks`. If None, a sample with an empty list of masks has no target, and a sample whose
            masks all belong to earlier messages ("What is <mask>?") asks for no mask.
    Returns:
        The masks; an empty list if there is no target; None if the question asks for no mask.
    """
    if masks is None:
        return None
    found = list(masks[count_in_questions(messages, MASK_PLACEHOLDER) :])
    if asks is None:
        asks = not masks
    return found if found or asks else None


def select_answer_boxes(
    objects: Mapping[str, Any] | None, messages: Messages, size: tuple[int, int] | None = None
) -> list[list[float]] | None:
    """Select the true boxes of a sample's last answer.

    Args:
        objects: the sample's column `objects`, in ms-swift's format.
        messages: of the sample.
        size: (h, w) of its image; needed if `bbox_type` is norm1.
    Returns:
        x1, y1, x2, y2 in pixels each; None if there are no boxes, they are points, or belong to another image than the
        first.
    """
    objects = objects or {}
    boxes = list(objects.get("bbox") or [])[count_in_questions(messages, BOX_PLACEHOLDER) :]
    if not boxes or any(len(box) != 4 for box in boxes) or any(objects.get("image_id") or []):
        return None
    if objects.get("bbox_type") != "norm1":
        return [[float(value) for value in box] for box in boxes]
    if size is None:
        return None
    h, w = size
    return [[float(value) * side for value, side in zip(box, (w, h, w, h), strict=True)] for box in boxes]
