"""Tasks about what an expression means: its masks, its boxes, its words, and that there is nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from himtok_plugin.data.joined_expressions import joined_question
from himtok_plugin.data.records import BadEntry, Query, Record, SkipLog
from himtok_plugin.mask_text import BOX_PLACEHOLDER

from .making import (
    DEFAULT_SENTENCES,
    Maker,
    Phrase,
    Row,
    by_class,
    check_count,
    ignored,
    is_absent,
    mask_answer,
    target_masks,
    task,
    uncountable_classes,
)
from .wording import clean, listed

NEGATIVE_TRIES = 50
NO_NEGATIVE = "no expression of another image fits"


@task("expression to its masks; none where nothing is meant")
def segment(record: Record, make: Maker) -> Iterator[Row]:
    for query in record.queries:
        for text in _asked(query, make):
            if make.is_sampled():
                with make.skipping_bad_entries(record, f"query {query.id}"):
                    masks = target_masks(record, query.targets, make.options)
                    expressions = [clean(each) for each in query.expressions]
                    if text is None:
                        question = joined_question(expressions)
                        answer = mask_answer(make, "segment_sentence", len(masks))
                    else:
                        pool, fields = "segment_sentence" if query.sentence else "segment", {"expression": clean(text)}
                        question = make.draw(pool, "questions", **fields)
                        answer = mask_answer(make, pool, len(masks), **fields)
                    scoring = {"referent": query.id, "expressions": expressions}
                    scoring |= ignored(query.ignore, record)
                    yield make.row(record, query.id, question, answer, masks, **scoring)


def _asked(query: Query, make: Maker) -> Sequence[str | None]:
    """The expression of each question about a query; None for one that joins all of them."""
    texts = query.expressions
    sentences = make.options.sentences or DEFAULT_SENTENCES
    return {
        "each": lambda: texts,
        "one": lambda: (make.rng.choice(texts),),
        "first": lambda: texts[:1],
        "joined": lambda: (None,),
    }[sentences]()


def _referents(record: Record, log: SkipLog) -> Iterator[tuple[str, int, str]]:
    """(expression, region, id) of everything that is told by words: single targets, else classes of one object."""
    for query in record.queries:
        if len(query.targets) == 1 and not query.sentence:
            for text in query.expressions:
                yield text, query.targets[0], query.id
    if not record.queries:
        uncountable = uncountable_classes(record)
        for name, regions in by_class(record, record.objects(log)).items():
            if len(regions) == 1 and name not in uncountable:
                yield f"the {name}", regions[0], name


@task("first the mask of an expression, then its box")
def mask_then_box(record: Record, make: Maker) -> Iterator[Row]:
    for text, region, id in _referents(record, make.log):
        if make.is_sampled():
            with make.skipping_bad_entries(record, f"query {id}"):
                question = make.draw("mask_then_box", "questions", expression=clean(text))
                answer = make.draw("mask_then_box", "answers")
                yield make.row(record, id, question, answer, [record.rle(region)], [record.box(region)])


@task("mask to its description")
def describe(record: Record, make: Maker) -> Iterator[Row]:
    for text, region, id in _referents(record, make.log) if record.queries else ():
        if make.is_sampled():
            with make.skipping_bad_entries(record, f"query {id}"):
                answer = make.draw("describe", "answers", expression=clean(text))
                question = make.draw("describe", "questions")
                yield make.row(record, id, question, answer, [record.rle(region)], asks_for_masks=False)


@task("expression to its boxes")
def ground(record: Record, make: Maker) -> Iterator[Row]:
    for query in record.queries:
        for text in query.expressions:
            if make.is_sampled():
                with make.skipping_bad_entries(record, f"query {query.id}"):
                    boxes = [record.box(i) for i in query.targets]
                    check_count(boxes, make.options)
                    question = make.draw("ground", "questions", expression=clean(text))
                    if len(boxes) > 1:
                        answer = make.draw("ground", "several", boxes=listed(BOX_PLACEHOLDER, len(boxes)))
                    else:
                        answer = make.draw("ground", "one") if boxes else make.draw("ground", "none", expression=text)
                    yield make.row(record, query.id, question, answer, boxes=boxes, asks_for_masks=False)


@task("expression of another image: there is none here", needs_negatives=True)
def negative(record: Record, make: Maker) -> Iterator[Row]:
    for id in [query.id for query in record.queries] or ([""] if record.present is not None else []):
        if make.is_sampled():
            with make.skipping_bad_entries(record, "negative"):
                phrase = _absent_phrase(record, make)
                pool, field = ("segment_class", "category") if phrase.is_class else ("segment", "expression")
                question = make.draw(pool, "questions", **{field: phrase.text})
                answer = make.draw(pool, "none", **{field: phrase.text})
                yield make.row(record, f"{id}/{phrase.image_id}", question, answer)


def _absent_phrase(record: Record, make: Maker) -> Phrase:
    """An expression of another image, whose class is not in this one as far as the dataset tells."""
    own = {text.lower() for query in record.queries for text in query.expressions}
    for _ in range(NEGATIVE_TRIES if make.negatives else 0):
        phrase = make.rng.choice(make.negatives)
        if phrase.image_id != record.image_id and phrase.text.lower() not in own and is_absent(phrase, record):
            return phrase
    raise BadEntry(NO_NEGATIVE, f"{len(make.negatives)} expressions were at hand")
