"""The question that an expression stands for."""

from __future__ import annotations

from himtok_plugin.mask_text import BOX_PLACEHOLDER, IMAGE_PLACEHOLDER, MASK_PLACEHOLDER

QUESTION = "Segment {}."  # as in docs/data.md
QUESTION_ENDS = (".", "?", "!", "。", "？", "！")


def format_question(template: str, text: str) -> str:
    """Return the text itself if it is a question of its own, else the template with the text.

    Args:
        template: with one `{}`.
        text: an expression ("the dog on the left"), or a question: it ends like a sentence, or has a placeholder.
    Raises:
        ValueError: the text is empty.
    """
    text = text.strip()
    if not text:
        raise ValueError("expression is empty: expected what to segment, or a question")
    placeholders = (IMAGE_PLACEHOLDER, MASK_PLACEHOLDER, BOX_PLACEHOLDER)
    if text.endswith(QUESTION_ENDS) or any(placeholder in text for placeholder in placeholders):
        return text
    return template.format(text)
