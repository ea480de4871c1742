"""The phrase that a question asks about, and the masks of each answer of a training row.

Contract: two questions have the same phrase if they differ in case, spaces, final punctuation, images, and in the
wording of the shipped prompt pools: "Segment the road." and "Can you segment the  Road?" both ask for "the road". Boxes
and masks in a question stay placeholders, so that "Segment the object in the box <bbox>." is one phrase for all boxes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from himtok_plugin.data.messages import ASSISTANT, USER, parse_messages
from himtok_plugin.data.prompts import Prompts
from himtok_plugin.data.samples import row_masks
from himtok_plugin.mask_text import (
    IMAGE_PLACEHOLDER,
    MASK_PLACEHOLDER,
    OBJECT_PLACEHOLDER,
    count_placeholders,
    text_to_codes,
)
from himtok_plugin.words.plurals import pluralize

from .ground_truth import ASKS_FOR_MASKS

MEDIA = (IMAGE_PLACEHOLDER, "<video>", "<audio>")
NO_PHRASE = ""  # of a row without a question
_END = ".!?…。！？,;:，；： "
_FIELD = re.compile(r"\{(\w+)\}")


class TrueAnswer(NamedTuple):
    """An answer of a training row.

    Attributes:
        phrase: of its question, `NO_PHRASE` for rows of masks alone.
        masks: sources of `masks.load_mask`, empty if nothing in the image is what is asked for.
    """

    phrase: str
    masks: list[Any]


class _Wording(NamedTuple):
    """A wording of the prompt pools, whose one field is between two texts."""

    before: str
    after: str
    is_singular: bool


def find_phrase(row: Mapping[str, Any]) -> str:
    """Return the phrase of a result's last question; `NO_PHRASE` if it has no question.

    Args:
        row: a result or a sample, in any format that ms-swift trains on.
    Raises:
        ValueError: the messages have no known format.
    """
    messages = _fill_references(parse_messages(row), row)
    while messages and messages[-1][0] == ASSISTANT:
        messages.pop()
    answered = max((i + 1 for i, (role, _) in enumerate(messages) if role == ASSISTANT), default=0)
    return normalize_question("\n".join(text for role, text in messages[answered:] if role == USER))


def list_answers(row: Mapping[str, Any], name: str = "row") -> list[TrueAnswer]:
    """List the answers of a training row that may have masks, one per turn.

    An answer without a mask counts as "no target" unless the row has no masks column, or `asks_for_masks` is false.

    Args:
        row: as in the dataset's file.
        name: its name in errors.
    Raises:
        ValueError: the row has fewer masks than `<mask>`, or no known format.
    """
    masks = row_masks(row, name)
    if masks is None:
        return []
    messages = _fill_references(parse_messages(row), row)
    if not messages:  # for stage 1: every mask is one of its own
        return [TrueAnswer(NO_PHRASE, [mask]) for mask in masks]
    if messages[-1][0] == USER:  # for reinforcement learning: the masks of the answer, which has no text
        messages.append((ASSISTANT, ""))
    needed = sum(count_placeholders(text) for _, text in messages)
    if needed > len(masks):
        raise ValueError(
            f"{name}: messages hold {needed} {MASK_PLACEHOLDER}, masks holds {len(masks)}: expected one for each"
        )
    last = len(messages) - 1
    answers: list[TrueAnswer] = []
    asked: list[str] = []
    first = 0
    for i, (role, text) in enumerate(messages):
        end = len(masks) if i == last and role == ASSISTANT else first + count_placeholders(text)
        if role == USER:
            asked.append(text)
        elif role == ASSISTANT:
            if end > first or row.get(ASKS_FOR_MASKS) is not False:
                answers.append(TrueAnswer(normalize_question("\n".join(asked)), masks[first:end]))
            asked = []
        first = end
    return answers


def normalize_question(question: str) -> str:
    """Return the phrase of a question, see the module."""
    for placeholder in MEDIA:
        question = question.replace(placeholder, " ")
    for span in reversed(text_to_codes(question)):
        question = question[: span.start] + MASK_PLACEHOLDER + question[span.end :]
    text = _normalize(question)
    fitting = [w for w in _list_wordings() if text.startswith(w.before) and text.endswith(w.after)]
    # "Segment all {plural}." fits better than "Segment {expression}."
    for wording in sorted(fitting, key=lambda each: len(each.before) + len(each.after), reverse=True):
        phrase = text[len(wording.before) : len(text) - len(wording.after)].strip(_END)
        if phrase:
            return _normalize(pluralize(phrase)) if wording.is_singular else phrase
    return text


def _fill_references(messages: list[tuple[str, str]], row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Replace each `<ref-object>` by the next entry of `objects.ref`, as ms-swift does."""
    objects = row.get("objects")
    found = objects.get("ref") if isinstance(objects, Mapping) else None
    references: Iterator[Any] = iter(found if isinstance(found, Sequence) and not isinstance(found, str) else ())
    filled = []
    for role, text in messages:
        first, *pieces = text.split(OBJECT_PLACEHOLDER)
        filled.append((role, first + "".join(f"{next(references, OBJECT_PLACEHOLDER)}{piece}" for piece in pieces)))
    return filled


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(_END)


@cache
def _list_wordings() -> list[_Wording]:
    """The questions of the shipped prompt pools that have one field, the name of something."""
    wordings = set()
    for text in Prompts.load().texts_of_kind("questions"):
        fields = list(_FIELD.finditer(text))
        if len(fields) == 1 and fields[0][1] in ("expression", "category", "plural"):
            before, after = text[: fields[0].start()], text[fields[0].end() :]
            # Spaces beside the field are part of the wording; those at its ends are not.
            before = f"{_normalize(before)} " if before.endswith(" ") else _normalize(before)
            after = _normalize(f"x{after}")[1:]
            wordings.add(_Wording(before, after, fields[0][1] == "category"))
    return sorted(wordings)
