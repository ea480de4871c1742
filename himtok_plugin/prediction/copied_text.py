"""Answers as they are copied from elsewhere: result rows, JSON strings, web pages, logs.

`read_answers` finds the answers in a text: one per row of results or other JSON lines, or the text itself. It undoes
the escapes of JSON (`\\u003c|mt_7|\\u003e`), HTML (`&lt;|mt_7|&gt;`), addresses (`%3C%7Cmt_7%7C%3E`) and Markdown
(`\\<\\|mt\\_7\\|\\>`) if there is no mask token otherwise, and says so. `describe_near_miss` names what is almost one.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from himtok_plugin.mask_text import MASK_TOKEN_PREFIX

DEEPEST_ESCAPE = 3  # times that a text may have been escaped
_JSON_ESCAPE = re.compile(r"\\+u([0-9a-fA-F]{4})")
_MARKDOWN_ESCAPE = re.compile(r"\\([<>|_\[\]`*#-])")
_PADDED = re.compile(r"<\|mt_0[0-9]+\|>")
_SPACED = re.compile(r"<\s*\|\s*mt_\w+\s*\|\s*>|\bmt_(?:start|end|[0-9]+)\b")


@dataclass(frozen=True)
class CopiedAnswer:
    """An answer in a text.

    Attributes:
        text: the answer, with literal mask tokens if it has any.
        escaping: the escaping that was undone, such as "HTML"; None if there was none.
        sizes: (h, w) of each mask in a result row or a response, in order; empty if it does not say.
        images: paths of a row's images.
    """

    text: str
    escaping: str | None = None
    sizes: list[tuple[int, int]] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


def read_answers(text: str) -> list[CopiedAnswer]:
    """Find the answers in a text: a JSON value, JSON lines, or a plain text, which is one answer."""
    values = _parse_json_values(text)
    if values is None:
        return [CopiedAnswer(*unescape_mask_tokens(text))]
    return [answer for value in values for answer in _read_value(value)]


def unescape_mask_tokens(text: str) -> tuple[str, str | None]:
    """Undo the escaping of a text that has mask tokens only then.

    Returns:
        The text and the name of the escaping, or the text as it is and None.
    """
    if MASK_TOKEN_PREFIX in text:
        return text, None
    for name, unescape in _ESCAPES.items():
        plain = text
        for _ in range(DEEPEST_ESCAPE):
            plain = unescape(plain)
            if MASK_TOKEN_PREFIX in plain:
                return plain, name
    return text, None


def describe_near_miss(text: str) -> str | None:
    """Say what in a text looks like mask tokens but is none; None if nothing does."""
    if padded := _PADDED.search(text):
        token = padded[0]
        return f"got {token}, whose number begins with 0, expected <|mt_{int(token[5:-2])}|>"
    if spaced := _SPACED.search(text):
        return f"got {spaced[0]!r}, expected tokens such as <|mt_start|><|mt_7|><|mt_end|>, with their brackets"
    return None


def _unescape_json(text: str) -> str:
    return _JSON_ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)


_ESCAPES: dict[str, Callable[[str], str]] = {
    "JSON": _unescape_json,
    "HTML": html.unescape,
    "URL": unquote,
    "Markdown": lambda text: _MARKDOWN_ESCAPE.sub(r"\1", text),
}


def _parse_json_values(text: str) -> list[Any] | None:
    """Parse one JSON value (a list counts as its entries), or JSON lines; None for other text."""
    stripped = text.strip()
    if not stripped.startswith(("{", "[", '"')):
        return None
    try:
        value = json.loads(stripped)
        return value if isinstance(value, list) else [value]
    except (ValueError, RecursionError):
        pass
    try:
        values = [json.loads(line) for line in stripped.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return None
    return values if all(isinstance(value, (dict, str)) for value in values) else None


def _read_value(value: Any) -> Iterator[CopiedAnswer]:
    if isinstance(value, str):
        yield CopiedAnswer(*unescape_mask_tokens(value))
    elif isinstance(value, dict):
        masks = _as_list(value.get("masks")) or _list_segments(value)
        sizes = [size for mask in masks if (size := _read_size(mask)) is not None]
        images = [path for image in _as_list(value.get("images")) if (path := _read_path(image)) is not None]
        for text in _find_texts(value):
            yield CopiedAnswer(*unescape_mask_tokens(text), sizes=sizes, images=images)


def _find_texts(row: dict[str, Any]) -> list[str]:
    """The answers in a result row, a server's response or a row of a dataset: its own fields before any other text."""
    if isinstance(row.get("response"), str):  # of ms-swift
        return [row["response"]]
    if isinstance(row.get("choices"), list):  # of a server
        return [text for choice in row["choices"] for text in _list_texts(choice)]
    if isinstance(row.get("text"), str):  # of `himtok encode --json`
        return [row["text"]]
    for name, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        turns = [turn for turn in _as_list(row.get(name)) if isinstance(turn, dict)]
        answers = [turn.get(content) for turn in turns if turn.get(role) in ("assistant", "gpt")]
        if answers:
            return ["".join(_list_texts(answers[-1]))]
    return [text for text in _list_texts(row) if MASK_TOKEN_PREFIX in unescape_mask_tokens(text)[0]]


def _list_segments(response: dict[str, Any]) -> list[Any]:
    """The segments in the messages of a server's response."""
    choices = [choice for choice in _as_list(response.get("choices")) if isinstance(choice, dict)]
    messages = [message for choice in choices if isinstance(message := choice.get("message"), dict)]
    return [segment for message in messages for segment in _as_list(message.get("segments"))]


def _list_texts(value: Any) -> list[str]:
    """All strings in a value, in order."""
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in children for text in _list_texts(child)]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _read_size(mask: Any) -> tuple[int, int] | None:
    size = mask.get("size") if isinstance(mask, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return size[0], size[1]
    return None


def _read_path(image: Any) -> str | None:
    path = image.get("path") if isinstance(image, dict) else image
    return path if isinstance(path, str) else None
