"""The words of a row: what an annotation says, made fit to stand in it, and how placeholders are listed.

Contract: text in, text out; what cannot stand in a row is a `BadEntry`. Does not know records and tasks.
"""

import re

from himtok_plugin.data.records import BAD_TEXT, NOT_UTF8, BadEntry
from himtok_plugin.mask_text import (
    BOX_PLACEHOLDER,
    IMAGE_PLACEHOLDER,
    MASK_PLACEHOLDER,
    MASK_TOKEN_PREFIX,
    OBJECT_PLACEHOLDER,
    text_to_codes,
)

# What ms-swift and this package read in a text as something else than text.
PLACEHOLDERS = (
    *(IMAGE_PLACEHOLDER, BOX_PLACEHOLDER, OBJECT_PLACEHOLDER, MASK_PLACEHOLDER, MASK_TOKEN_PREFIX),
    *("<video>", "<audio>", "<cot-process>", "<start-image>"),
)
_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\S)", re.IGNORECASE)


def clean(text: str) -> str:
    """Text of an annotation, fit to stand in a row.

    Raises:
        BadEntry: it is empty, no UTF-8, or holds what would be read as a placeholder.
    """
    text = " ".join(text.split())
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadEntry(NOT_UTF8, str(error)) from error
    if not text or any(placeholder in text for placeholder in PLACEHOLDERS):
        raise BadEntry(BAD_TEXT, f"got {text!r:.120}")
    return text


def clean_with_masks(text: str) -> str:
    """The same for text in which masks may stand: `<mask>`, or mask text written out to its end."""
    bare = text
    for span in reversed(text_to_codes(text)):
        if span.complete:
            bare = f"{bare[: span.start]} mask {bare[span.end :]}"
    clean(bare.replace(MASK_PLACEHOLDER, " mask "))
    return text


def without_article(text: str) -> str:
    """What of "the cat" stands in "There is no cat"; a bare article stays."""
    article = _ARTICLE.match(text)
    return text[article.end() :] if article else text


def listed(placeholder: str, count: int) -> str:
    """`<mask>, <mask> and <mask>`."""
    return " and ".join(filter(None, [", ".join([placeholder] * (count - 1)), placeholder]))
