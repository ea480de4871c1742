"""What the masks of a result are called: their labels and the expressions that asked for them.

Contract: a mask has the label that the answer's text gives it (`prediction.segments.find_label`), else the class of the
row, else the expression of the question without its article. A question in none of the known phrasings that is a whole
sentence is an expression and no label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from himtok_plugin.data.prompts import Prompts
from himtok_plugin.evaluation.results import CLASS, get_question
from himtok_plugin.mask_text import text_to_codes
from himtok_plugin.prediction.segments import find_label

# Tasks whose questions name what to segment, those first whose phrasings others contain.
_TASKS = ("segment_instances", "segment_class", "mask_then_box", "segment")
_REFERENCE = re.compile(r"<ref>([^<>]+)</ref>|<\|object_ref_start\|>([^<>]+)<\|object_ref_end\|>")
_MARKUP = re.compile(r"<[^<>]*>")
_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\S)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.?!。？！]$")
_LONGEST_LABEL = 80  # characters; longer ones are no names of classes


class MaskName(NamedTuple):
    """What a mask is called; None where nothing says it. `is_phrase`: the label is an expression, not a class."""

    label: str | None
    expression: str | None
    is_phrase: bool = False


def name_masks(row: Mapping[str, Any], masks: Sequence[Mapping[str, Any]]) -> list[MaskName]:
    """Name the masks of a result, in order.

    Args:
        row: the result.
        masks: entries of its `masks`; some of the answer's may be missing, left out by their score.
    """
    name = _name_question(row)
    labels = _labels_in_text(row.get("response"), masks)
    return [name if own is None else MaskName(own, name.expression) for own in labels]


def _name_question(row: Mapping[str, Any]) -> MaskName:
    asked = get_question(dict(row))
    question = " ".join(_MARKUP.sub(" ", asked).split())
    reference = _REFERENCE.search(asked)
    found = (reference[1] or reference[2]).strip() if reference else find_expression(question)
    category = row.get(CLASS)
    if isinstance(category, str) and category.strip():
        return MaskName(" ".join(category.split()), found)
    if found is None:
        return MaskName(None, question or None)
    label = _ARTICLE.sub("", found, count=1) if _ARTICLE.match(found) else found
    return MaskName(label if len(label) <= _LONGEST_LABEL else None, found, is_phrase=True)


def find_expression(question: str) -> str | None:
    """The expression in a question: what it asks to segment; a question that is no sentence is one as a whole.

    >>> find_expression("Please segment the left cup in this image.")
    'the left cup'
    """
    for pattern in _question_patterns():
        if match := pattern.fullmatch(question):
            return match[1].strip()
    return question if question and not _SENTENCE_END.search(question) else None


@cache
def _question_patterns() -> list[re.Pattern[str]]:
    prompts = Prompts.load()
    texts = [text for task in _TASKS for text in prompts.texts(task, "questions")]
    patterns = []
    for text in sorted(texts, key=len, reverse=True):  # the longest match is the most specific one
        before, _, after = re.sub(r"\{\w+\}", "\0", text).partition("\0")
        end = re.escape(after.rstrip(".?")) + (r"[.?!]*" if after.endswith((".", "?")) else "")
        patterns.append(re.compile(re.escape(before) + "(.+?)" + end, re.IGNORECASE))
    return patterns


def _labels_in_text(text: Any, masks: Sequence[Mapping[str, Any]]) -> list[str | None]:
    """The labels in an answer. A mask belongs to the next place in the text that has its codes."""
    if not isinstance(text, str):
        return [None] * len(masks)
    ends, found = 0, []
    spans = iter(text_to_codes(text))
    for mask in masks:
        label = None
        for span in spans:
            before, ends = text[ends : span.start], span.end
            if span.codes == mask.get("codes"):
                label = find_label(before)
                break
        found.append(label)
    return found
