"""Expressions and class names of images drawn at random, for questions about what is not in another image."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from .records import Record
from .skip_log import AnnotationError
from .tasks import Phrase, clean_text

NEGATIVE_ITEMS = 1000  # items whose expressions are used
MAX_NEGATIVES = 8192


def draw_negative_phrases(count: int, records_of: Callable[[int], Iterator[Record]], seed: int) -> list[Phrase]:
    """Draw the phrases of a dataset.

    Args:
        count: number of its items.
        records_of: gives the records of the item with a number.
    """
    rng = random.Random(f"{seed}/negatives")
    phrases: list[Phrase] = []
    for number in sorted(rng.sample(range(count), min(NEGATIVE_ITEMS, count))):
        for record in records_of(number):
            phrases += _record_phrases(record)
    return rng.sample(phrases, min(MAX_NEGATIVES, len(phrases)))


def _record_phrases(record: Record) -> Iterator[Phrase]:
    for query in record.queries:
        if query.targets and not query.sentence:
            category = record.regions[query.targets[0]].category
            for text in query.expressions:
                try:
                    yield Phrase(clean_text(text), category, record.image_id, False)
                except AnnotationError:
                    continue
    for name in sorted(record.present or ()):
        try:
            yield Phrase(clean_text(name), name, record.image_id, True)
        except AnnotationError:
            continue
