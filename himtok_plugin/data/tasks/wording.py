"""Text of annotations as it goes into samples, and lists of placeholders.

Contract: functions of text; what must not stand in a sample is an `AnnotationError`.
"""

import re

from himtok_plugin.data.skip_log import BAD_TEXT, NOT_UTF8, AnnotationError
from himtok_plugin.mask_text import (
    BOX_PLACEHOLDER,
    IMAGE_PLACEHOLDER,
    MASK_PLACEHOLDER,
    MASK_TOKEN_PREFIX,
    OBJECT_PLACEHOLDER,
    text_to_codes,
)

# What ms-swift and this package do not read as plain text.
PLACEHOLDERS = (
    *(IMAGE_PLACEHOLDER, BOX_PLACEHOLDER, OBJECT_PLACEHOLDER, MASK_PLACEHOLDER, MASK_TOKEN_PREFIX),
    *("<video>", "<audio>", "<cot-process>", "<start-image>"),
)
_LEADING_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\S)", re.IGNORECASE)


def clean_text(text: str) -> str:
    """Normalise the white space of an annotation's text.

    Raises:
        AnnotationError: it is empty, not UTF-8, or contains a placeholder.
    """
    text = " ".join(text.split())
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise AnnotationError(NOT_UTF8, str(error)) from error
    if not text or any(placeholder in text for placeholder in PLACEHOLDERS):
        raise AnnotationError(BAD_TEXT, f"got {text!r:.120}")
    return text


def check_text_with_masks(text: str) -> None:
    """Check text that may contain masks, as `<mask>` or as complete mask text.

    Raises:
        AnnotationError: like `clean_text`.
    """
    bare = text
    for span in reversed(text_to_codes(text)):
        if span.complete:
            bare = f"{bare[: span.start]} mask {bare[span.end :]}"
    clean_text(bare.replace(MASK_PLACEHOLDER, " mask "))


def strip_article(text: str) -> str:
    """Remove a leading article, for "There is no cat"; an article without a noun stays."""
    article = _LEADING_ARTICLE.match(text)
    return text[article.end() :] if article else text


def join_placeholders(placeholder: str, count: int) -> str:
    """`<mask>, <mask> and <mask>`."""
    return " and ".join(filter(None, [", ".join([placeholder] * (count - 1)), placeholder]))
