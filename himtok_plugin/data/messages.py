"""The texts of a row: who says what, in all forms of messages that ms-swift trains on.

Contract: `parse_messages` returns texts with the placeholder `<mask>` where the row has masks. Nothing here changes a
row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, reference_placeholder_to_mask
from himtok_plugin.validation import abridged

from .samples import ANSWER_COLUMNS, HISTORY_COLUMN, QUESTION_COLUMNS, row_messages

USER, ASSISTANT = "user", "assistant"
KNOWN_ROLES = ("system", USER, ASSISTANT, "tool", "tool_call", "tool_response")
_OTHER_NAMES = {"human": USER, "gpt": ASSISTANT, "bot": ASSISTANT}  # that ms-swift gives to these roles


def parse_messages(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a sample's messages, in ms-swift's format or that of the paper's code, with `<mask>` for masks.

    A message has a role and its content, a text or a list of parts, or is a pair of a question and its answer. A row
    without messages has the columns `history`, `query`, `response` and the like.

    Raises:
        ValueError: none of these formats.
    """
    messages = row_messages(row)
    if messages is None:
        found = list(_iter_columns(row))
    elif isinstance(messages, list):
        found = [pair for i, message in enumerate(messages) for pair in _parse_message(message, f"messages[{i}]")]
    else:
        raise ValueError(f"messages is {abridged(messages)}: expected a list")
    return [(role, reference_placeholder_to_mask(text)) for role, text in found]


def _iter_columns(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the texts of a row without messages."""
    history = row.get(HISTORY_COLUMN)
    turns = [turn for turn in history if isinstance(turn, list)] if isinstance(history, list) else []
    pairs = [pair for turn in turns for pair in zip((USER, ASSISTANT), turn, strict=False)]
    columns = (USER, QUESTION_COLUMNS), (ASSISTANT, ANSWER_COLUMNS)
    pairs += [(role, row.get(column)) for role, own in columns for column in own]
    yield from ((role, text) for role, text in pairs if isinstance(text, str))


def _parse_message(message: Any, name: str) -> list[tuple[str, str]]:
    """The roles and texts of a message: one, or two if it is a pair of a question and its answer."""
    fields = message if isinstance(message, dict) else {}
    if not fields.keys() & {"role", "from", "content", "value"}:
        roles = {key: _OTHER_NAMES.get(key, key) for key in fields}
        pair = sorted(((role, fields[key]) for key, role in roles.items() if role in (USER, ASSISTANT)), reverse=True)
        if [role for role, _ in pair] == [USER, ASSISTANT] and all(isinstance(text, str) for _, text in pair):
            return pair
    role = fields.get("role", fields.get("from", ""))
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    text = _join_parts(fields.get("content", fields.get("value")))
    if role not in KNOWN_ROLES or text is None:
        raise ValueError(f"{name} is {abridged(message)}: expected a role and its content")
    return [(role, text)]


def _join_parts(content: Any) -> str | None:
    """The text of a message's content, `<image>` for images in it; None if it is neither a text nor a list of parts."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind in ("image", "image_url"):
            texts.append(IMAGE_PLACEHOLDER)
        else:
            return None
    return "".join(texts)
