"""Tasks about referring expressions: their masks, their boxes, their texts, and expressions without a referent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from himtok_plugin.data.joined_expressions import joined_question
from himtok_plugin.data.records import Query, Record
from himtok_plugin.data.skip_log import AnnotationError, SkipLog
from himtok_plugin.mask_text import BOX_PLACEHOLDER

from .sample_builder import (
    DEFAULT_SENTENCES,
    EXPRESSIONS,
    EXPRESSIONS_OF_ONE,
    OTHER_EXPRESSIONS,
    REFERENTS,
    Phrase,
    Sample,
    SampleBuilder,
    check_mask_count,
    draw_mask_answer,
    group_by_class,
    ignore_column,
    is_absent,
    register_task,
    target_masks,
    uncountable_classes,
)
from .wording import clean_text, join_placeholders

NEGATIVE_TRIES = 50
NO_NEGATIVE = "no expression of another image fits"


@register_task("expression to its masks; none if nothing in the image matches", EXPRESSIONS)
def segment(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    for query in record.queries:
        for text in _select_expressions(query, builder):
            if builder.is_sampled():
                with builder.skip_on_error(record, f"query {query.id}", query.targets):
                    masks = target_masks(record, query.targets, builder.options)
                    expressions = [clean_text(each) for each in query.expressions]
                    if text is None:
                        question = joined_question(expressions)
                        answer = draw_mask_answer(builder, "segment_sentence", len(masks))
                    else:
                        pool, fields = (
                            "segment_sentence" if query.sentence else "segment",
                            {"expression": clean_text(text)},
                        )
                        question = builder.draw(pool, "questions", **fields)
                        answer = draw_mask_answer(builder, pool, len(masks), **fields)
                    scoring: Sample = {"referent": query.id, "expressions": expressions}
                    scoring |= ignore_column(query.ignore, record)
                    yield builder.build(record, query.id, question, answer, masks, **scoring)


def _select_expressions(query: Query, builder: SampleBuilder) -> Sequence[str | None]:
    """The expression of each question about a query; None for one question that joins all of them."""
    texts = query.expressions
    sentences = builder.options.sentences or DEFAULT_SENTENCES
    return {
        "each": lambda: texts,
        "one": lambda: (builder.rng.choice(texts),),
        "first": lambda: texts[:1],
        "joined": lambda: (None,),
    }[sentences]()


def _referents(record: Record, log: SkipLog) -> Iterator[tuple[str, int, str]]:
    """(expression, region, id) of every single target; without queries, of every class with one object."""
    for query in record.queries:
        if len(query.targets) == 1 and not query.sentence:
            for text in query.expressions:
                yield text, query.targets[0], query.id
    if not record.queries:
        uncountable = uncountable_classes(record)
        for name, regions in group_by_class(record, record.objects(log)).items():
            if len(regions) == 1 and name not in uncountable:
                yield f"the {name}", regions[0], name


@register_task("first the mask of an expression, then its box", REFERENTS)
def mask_then_box(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    for text, region, id in _referents(record, builder.log):
        if builder.is_sampled():
            with builder.skip_on_error(record, f"query {id}", [region]):
                question = builder.draw("mask_then_box", "questions", expression=clean_text(text))
                answer = builder.draw("mask_then_box", "answers")
                yield builder.build(record, id, question, answer, [record.rle(region)], [record.box(region)])


@register_task("mask to its description", EXPRESSIONS_OF_ONE)
def describe(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    for text, region, id in _referents(record, builder.log) if record.queries else ():
        if builder.is_sampled():
            with builder.skip_on_error(record, f"query {id}", [region]):
                answer = builder.draw("describe", "answers", expression=clean_text(text))
                question = builder.draw("describe", "questions")
                yield builder.build(record, id, question, answer, [record.rle(region)], asks_for_masks=False)


@register_task("expression to its boxes", EXPRESSIONS)
def ground(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    for query in record.queries:
        for text in query.expressions:
            if builder.is_sampled():
                with builder.skip_on_error(record, f"query {query.id}", query.targets):
                    boxes = [record.box(i) for i in query.targets]
                    check_mask_count(boxes, builder.options)
                    question = builder.draw("ground", "questions", expression=clean_text(text))
                    if len(boxes) > 1:
                        answer = builder.draw("ground", "several", boxes=join_placeholders(BOX_PLACEHOLDER, len(boxes)))
                    else:
                        answer = (
                            builder.draw("ground", "one") if boxes else builder.draw("ground", "none", expression=text)
                        )
                    yield builder.build(record, query.id, question, answer, boxes=boxes, asks_for_masks=False)


@register_task("expression of another image: nothing matches here", OTHER_EXPRESSIONS, needs_negatives=True)
def negative(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    for id in [query.id for query in record.queries] or ([""] if record.present is not None else []):
        if builder.is_sampled():
            with builder.skip_on_error(record, "negative"):
                phrase = _absent_phrase(record, builder)
                pool, field = ("segment_class", "category") if phrase.is_class else ("segment", "expression")
                question = builder.draw(pool, "questions", **{field: phrase.text})
                answer = builder.draw(pool, "none", **{field: phrase.text})
                yield builder.build(record, f"{id}/{phrase.image_id}", question, answer)


def _absent_phrase(record: Record, builder: SampleBuilder) -> Phrase:
    """An expression of another image whose class is absent from this one according to the annotations."""
    own = {text.lower() for query in record.queries for text in query.expressions}
    for _ in range(NEGATIVE_TRIES if builder.negatives else 0):
        phrase = builder.rng.choice(builder.negatives)
        if phrase.image_id != record.image_id and phrase.text.lower() not in own and is_absent(phrase, record):
            return phrase
    raise AnnotationError(NO_NEGATIVE, f"none of {len(builder.negatives)} expressions")
