"""What a dataset row's last answer should hold: masks and boxes, against which answers are scored.

Purpose: one rule for result rows, training's evaluation, rewards and benchmarks, so that a row which asks for no mask
(a VQA row in a mixture, say) is nowhere taken for a no-target row that was answered rightly.
Contract: values come back as rows hold them; nothing is read. None: there is nothing to score. Does not know ms-swift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from himtok_plugin.mask_text import BOX_PLACEHOLDER, MASK_PLACEHOLDER

ASKS_FOR_MASKS = "asks_for_masks"  # column that says it where masks and text do not

Messages = Sequence[Mapping[str, Any]]


def question_messages(messages: Messages) -> Messages:
    """All messages but a last one of the assistant, be it the true answer or a generated one."""
    return messages[:-1] if messages and messages[-1].get("role") == "assistant" else messages


def count_in_questions(messages: Messages, placeholder: str) -> int:
    """How often a placeholder stands in `question_messages`."""
    contents = (message.get("content") for message in question_messages(messages))
    return sum(content.count(placeholder) for content in contents if isinstance(content, str))


def select_answer_masks(masks: Sequence[Any] | None, messages: Messages, asks: bool | None = None) -> list[Any] | None:
    """The true masks of a row's last answer; an empty list: what was asked for is not there.

    Args:
        masks: of the whole row, those in questions and earlier answers first; None for a row without the column.
        messages: of the row.
        asks: its `asks_for_masks`. Where it is not said: no mask is asked for by a row without masks of its own, and by
            one whose masks all stand before the answer ("What is <mask>?"); a row with no mask at all, `"masks": []`,
            is one without a target.
    Returns:
        None where no mask was asked for.
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
    """The true boxes of a row's last answer: x1, y1, x2, y2 in pixels.

    Args:
        objects: the row's column, as ms-swift has it.
        messages: of the row.
        size: (h, w) of its image; needed where `bbox_type` is norm1.
    Returns:
        None where there are none, where they are points, or of another image than the first.
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
