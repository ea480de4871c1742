"""Tasks: what is asked about a record and what the answer is, as rows of the dataset format.

Purpose: one function per task turns a record into rows; which ones run is the caller's choice (`--task`).
Contract: a row has `messages`, `images`, `masks` (compressed RLE) and `source`; with boxes also `objects`; for scoring
also `asks_for_masks` (whether a question asks for masks, of which there may be none), `ignore` (RLE of pixels that are
not to count), `category`, `referent` and its `expressions`. What a row cannot be made of is told to the log. Everything
random comes from `Maker.rng`. Does not know formats, files and processes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pycocotools import mask as coco

from ..mask_text import (
    BOX_PLACEHOLDER,
    IMAGE_PLACEHOLDER,
    MASK_PLACEHOLDER,
    MASK_TOKEN_PREFIX,
    OBJECT_PLACEHOLDER,
    reference_placeholder_to_mask,
    text_to_codes,
)
from ..protocols import joined_question
from .prompts import Prompts
from .records import (
    BAD_TEXT,
    EMPTY_MASK,
    MASKS_DO_NOT_FIT,
    MISSING_IMAGE,
    NOT_UTF8,
    TOO_MANY,
    BadEntry,
    Box,
    Query,
    Record,
    Rle,
    SkipLog,
    encode_region,
    union,
)

# What ms-swift and this package read in a text as something else than text.
PLACEHOLDERS = (
    *(IMAGE_PLACEHOLDER, BOX_PLACEHOLDER, OBJECT_PLACEHOLDER, MASK_PLACEHOLDER, MASK_TOKEN_PREFIX),
    *("<video>", "<audio>", "<cot-process>", "<start-image>"),
)
SENTENCES = ("each", "one", "first", "joined")
DEFAULT_SENTENCES = "each"
_ARTICLE = re.compile(r"(?:the|an?)\s+(?=\S)", re.IGNORECASE)
NEGATIVE_TRIES = 50
ABSENT_CLASSES = 3  # asked for beside those that are there, at most
NO_NEGATIVE = "no expression of another image fits"

Row = dict[str, Any]


@dataclass(frozen=True)
class Phrase:
    """An expression of some image, to be asked of another one."""

    text: str
    category: str | None
    image_id: str
    is_class: bool


@dataclass(frozen=True)
class TaskOptions:
    """Choices that several tasks share.

    Attributes:
        sentences: a row for `each` expression of a referent, for `one` of them drawn, for the `first`, or for all
            `joined` as the paper's code asks it. None: what the dataset's split is evaluated with, else `each`.
        merge_targets: several targets as one mask.
        max_masks: most masks of a row; records with more give none.
    """

    sentences: str | None = None
    merge_targets: bool = False
    max_masks: int = 16

    def __post_init__(self) -> None:
        if self.sentences is not None and self.sentences not in SENTENCES:
            raise ValueError(f"sentences: got {self.sentences!r}, expected one of {', '.join(SENTENCES)}")
        if self.max_masks < 1:
            raise ValueError(f"max_masks: got {self.max_masks}, expected at least 1")


@dataclass
class Maker:
    """What the tasks of one record work with.

    Attributes:
        task: the one at work, and `share`, how much of its rows is wanted, in (0, 1].
    """

    prompts: Prompts
    rng: random.Random
    log: SkipLog
    options: TaskOptions = field(default_factory=TaskOptions)
    negatives: Sequence[Phrase] = ()
    dataset: str = ""
    split: str = ""
    task: str = ""
    share: float = 1.0

    def wanted(self) -> bool:
        """Whether to make the next row; drawn before any work goes into it."""
        return self.share >= 1 or self.rng.random() < self.share

    @contextmanager
    def telling(self, record: Record, id: str) -> Iterator[None]:
        """Tell the log of what a row cannot be made of."""
        try:
            yield
        except BadEntry as error:
            self.log.skip_entry(error, f"image {record.image_id}, {id}" if id else f"image {record.image_id}")

    def draw(self, pool: str, kind: str, **fields: str) -> str:
        if kind == "none":  # "There is no {expression}."
            fields = {name: without_article(text) for name, text in fields.items()}
        return self.prompts.draw(pool, kind, self.rng, **fields)

    def row(
        self,
        record: Record,
        id: str,
        question: str,
        answer: str,
        masks: Sequence[Rle] = (),
        boxes: Sequence[Box] | None = None,
        asks_for_masks: bool = True,
        **scoring: Any,
    ) -> Row:
        """A row of one question and its answer.

        Args:
            asks_for_masks: whether an answer without a mask would say that there is nothing of what was asked for.
            scoring: further columns that training does not read.
        Raises:
            BadEntry: there is no image.
        """
        if record.image is None:
            raise BadEntry(MISSING_IMAGE, "it is not a file of its own: only the task `masks` can do without")
        row: Row = {
            "messages": [
                {"role": "user", "content": f"{IMAGE_PLACEHOLDER}{question}"},
                {"role": "assistant", "content": answer},
            ],
            "images": [record.image],
            "masks": list(masks),
        }
        if boxes is not None:
            row["objects"] = {"ref": [], "bbox": [[round(value, 2) for value in box] for box in boxes]}
        row.update(scoring, asks_for_masks=asks_for_masks)
        row["source"] = self.source(record, id)
        return row

    def source(self, record: Record, id: str) -> dict[str, str]:
        """Where a row is from; text only, so that the column is of one type in every file."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "image_id": record.image_id,
            "id": id,
            "task": self.task,
        }


TaskFunction = Callable[[Record, Maker], Iterator[Row]]


@dataclass(frozen=True)
class Task:
    function: TaskFunction
    about: str
    needs_negatives: bool


TASKS: dict[str, Task] = {}


def task(about: str, needs_negatives: bool = False) -> Callable[[TaskFunction], TaskFunction]:
    def register(function: TaskFunction) -> TaskFunction:
        TASKS[function.__name__] = Task(function, about, needs_negatives)
        return function

    return register


def named_share(text: str, name: str) -> tuple[str, float]:
    """(task, share of its rows) that "segment" or "segment=0.5" says; `name` is how errors call the option."""
    task, equals, share = text.partition("=")
    try:
        return task, float(share) if equals else 1.0
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r}, expected NAME or NAME=SHARE") from error


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


# ----- expressions


@task("expression to its masks; none where nothing is meant")
def segment(record: Record, make: Maker) -> Iterator[Row]:
    for query in record.queries:
        for text in _asked(query, make):
            if make.wanted():
                with make.telling(record, f"query {query.id}"):
                    masks = _target_masks(record, query.targets, make.options)
                    expressions = [clean(each) for each in query.expressions]
                    if text is None:
                        question = joined_question(expressions)
                        answer = _mask_answer(make, "segment_sentence", len(masks))
                    else:
                        pool, fields = "segment_sentence" if query.sentence else "segment", {"expression": clean(text)}
                        question = make.draw(pool, "questions", **fields)
                        answer = _mask_answer(make, pool, len(masks), **fields)
                    scoring = {"referent": query.id, "expressions": expressions}
                    scoring |= _ignored(query.ignore, record)
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


def _mask_answer(make: Maker, pool: str, count: int, **fields: str) -> str:
    if count == 0:
        return make.draw(pool, "none", **fields)
    pool = pool if pool == "segment_instances" else "segment"  # the words for masks are the same ones
    if count == 1:
        return make.draw(pool, "one")
    return make.draw(pool, "several", masks=listed(MASK_PLACEHOLDER, count))


def _target_masks(record: Record, targets: Sequence[int], options: TaskOptions) -> list[Rle]:
    masks = [record.rle(i) for i in targets]
    if options.merge_targets and len(masks) > 1:
        masks = [union(masks, record.size)]
    _check_count(masks, options)
    return masks


def _check_count(masks: Sequence[Any], options: TaskOptions) -> None:
    if len(masks) > options.max_masks:
        raise BadEntry(TOO_MANY, f"got {len(masks)}, max_masks is {options.max_masks}")


def _ignored(mask: Any, record: Record) -> dict[str, list[Rle]]:
    """The column `ignore`, where there is anything to be ignored."""
    if mask is None:
        return {}
    try:
        return {"ignore": [encode_region(mask, record.size)]}
    except BadEntry as error:
        if error.reason == EMPTY_MASK:  # painted over, or a map in which everything is labelled
            return {}
        raise


def _referents(record: Record, log: SkipLog) -> Iterator[tuple[str, int, str]]:
    """(expression, region, id) of everything that is told by words: single targets, else classes of one object."""
    for query in record.queries:
        if len(query.targets) == 1 and not query.sentence:
            for text in query.expressions:
                yield text, query.targets[0], query.id
    if not record.queries:
        uncountable = _uncountable(record)
        for name, regions in _by_class(record, record.objects(log)).items():
            if len(regions) == 1 and name not in uncountable:
                yield f"the {name}", regions[0], name


@task("first the mask of an expression, then its box")
def mask_then_box(record: Record, make: Maker) -> Iterator[Row]:
    for text, region, id in _referents(record, make.log):
        if make.wanted():
            with make.telling(record, f"query {id}"):
                question = make.draw("mask_then_box", "questions", expression=clean(text))
                answer = make.draw("mask_then_box", "answers")
                yield make.row(record, id, question, answer, [record.rle(region)], [record.box(region)])


@task("mask to its description")
def describe(record: Record, make: Maker) -> Iterator[Row]:
    for text, region, id in _referents(record, make.log) if record.queries else ():
        if make.wanted():
            with make.telling(record, f"query {id}"):
                answer = make.draw("describe", "answers", expression=clean(text))
                question = make.draw("describe", "questions")
                yield make.row(record, id, question, answer, [record.rle(region)], asks_for_masks=False)


@task("expression to its boxes")
def ground(record: Record, make: Maker) -> Iterator[Row]:
    for query in record.queries:
        for text in query.expressions:
            if make.wanted():
                with make.telling(record, f"query {query.id}"):
                    boxes = [record.box(i) for i in query.targets]
                    _check_count(boxes, make.options)
                    question = make.draw("ground", "questions", expression=clean(text))
                    if len(boxes) > 1:
                        answer = make.draw("ground", "several", boxes=listed(BOX_PLACEHOLDER, len(boxes)))
                    else:
                        answer = make.draw("ground", "one") if boxes else make.draw("ground", "none", expression=text)
                    yield make.row(record, query.id, question, answer, boxes=boxes, asks_for_masks=False)


@task("expression of another image: there is none here", needs_negatives=True)
def negative(record: Record, make: Maker) -> Iterator[Row]:
    for id in [query.id for query in record.queries] or ([""] if record.present is not None else []):
        if make.wanted():
            with make.telling(record, "negative"):
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
        if phrase.image_id != record.image_id and phrase.text.lower() not in own and _is_absent(phrase, record):
            return phrase
    raise BadEntry(NO_NEGATIVE, f"{len(make.negatives)} expressions were at hand")


def _is_absent(phrase: Phrase, record: Record) -> bool:
    if phrase.category is None:
        return record.present is None
    if phrase.category in record.incomplete_classes:
        return False
    if record.absent is not None:
        return phrase.category in record.absent
    return record.present is None or phrase.category not in record.present


# ----- classes


def _uncountable(record: Record) -> set[str | None]:
    """Classes of which nobody can say how many objects there are, by the reader's word or for a crowd among them."""
    return {*record.incomplete_classes, *(region.category for region in record.regions if region.crowd)}


def _by_class(record: Record, indices: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i in indices:
        if record.regions[i].category:
            found.setdefault(record.regions[i].category, []).append(i)
    return found


@task("class to one mask of all of it, crowds included")
def segment_class(record: Record, make: Maker) -> Iterator[Row]:
    with_mask = [i for i, region in enumerate(record.regions) if region.mask is not None]
    for name, regions in _by_class(record, with_mask).items():
        if name in record.incomplete_classes:
            continue  # its mask would miss what is not annotated
        if make.wanted():
            with make.telling(record, name):
                # A class whose mask misses one of its objects would be wrong, so one bad mask costs the row.
                mask = union([record.rle(i) for i in regions], record.size)
                question = make.draw("segment_class", "questions", category=clean(name))
                answer = make.draw("segment_class", "one")
                yield make.row(record, name, question, answer, [mask], category=name, **_ignored(record.void, record))


@task("class to a mask per object")
def segment_instances(record: Record, make: Maker) -> Iterator[Row]:
    uncountable = _uncountable(record)
    for name, regions in _by_class(record, record.objects(make.log)).items():
        if name in uncountable:
            continue  # as `objects` or the reader has told
        if make.wanted():
            with make.telling(record, name):
                _check_count(regions, make.options)
                masks = [record.rle(i) for i in regions]
                question = make.draw("segment_instances", "questions", category=clean(name))
                answer = _mask_answer(make, "segment_instances", len(masks))
                yield make.row(record, name, question, answer, masks, category=name)


@task("all objects, each as a line of label and mask")
def label_objects(record: Record, make: Maker) -> Iterator[Row]:
    objects = [i for i in record.objects(make.log) if record.regions[i].category]
    if _uncountable(record):
        return  # they are not all, be it that one is of a class of which there is no mask at all
    if objects and make.wanted():
        with make.telling(record, "all objects"):
            _check_count(objects, make.options)
            masks = {i: record.rle(i) for i in objects}
            objects.sort(key=lambda i: (-int(coco.area(masks[i])), i))
            answer = _lines([record.regions[i].category for i in objects])
            question = make.draw("label_objects", "questions")
            yield make.row(record, "", question, answer, [masks[i] for i in objects])


@task("which of some classes are there, each as a line of label and mask", needs_negatives=True)
def open_vocabulary(record: Record, make: Maker) -> Iterator[Row]:
    if record.present is None or not make.wanted():
        return
    with make.telling(record, "open vocabulary"):
        with_mask = [i for i, region in enumerate(record.regions) if region.mask is not None]
        there = _by_class(record, with_mask)
        there = {name: regions for name, regions in there.items() if name not in record.incomplete_classes}
        names = {phrase.text for phrase in make.negatives if phrase.is_class and _is_absent(phrase, record)}
        names = sorted(names - there.keys())
        names = make.rng.sample(names, min(ABSENT_CLASSES, len(names))) + list(there)
        if not names:
            return
        make.rng.shuffle(names)
        found = [name for name in names if name in there]
        _check_count(found, make.options)
        masks = [union([record.rle(i) for i in there[name]], record.size) for name in found]
        question = make.draw("open_vocabulary", "questions", names=", ".join(map(clean, names)))
        answer = _lines(found) if found else make.draw("open_vocabulary", "none")
        yield make.row(record, "", question, answer, masks)


def _lines(labels: Sequence[str]) -> str:
    """`label: <mask>`, one per line: what `--mask_labels` lets a model answer."""
    for label in labels:
        if any(character in label for character in ":<\n\r"):
            raise BadEntry(BAD_TEXT, f"got {label!r:.120} for a label")
    return "\n".join(f"{clean(label)}: {MASK_PLACEHOLDER}" for label in labels)


# ----- regions


@task("box to its mask")
def box_to_mask(record: Record, make: Maker) -> Iterator[Row]:
    yield from _region_rows(record, make, "box_to_mask")


@task("mask to its box")
def mask_to_box(record: Record, make: Maker) -> Iterator[Row]:
    yield from _region_rows(record, make, "mask_to_box")


def _region_rows(record: Record, make: Maker, pool: str) -> Iterator[Row]:
    for i in record.objects(make.log):
        if make.wanted():
            region = record.regions[i]
            with make.telling(record, f"region {region.id or i}"):
                masks, boxes = [record.rle(i)], [record.box(i)]
                question, answer = make.draw(pool, "questions"), make.draw(pool, "answers")
                asks = pool == "box_to_mask"
                yield make.row(record, region.id, question, answer, masks, boxes, asks_for_masks=asks)


@task("mask to its class")
def name_region(record: Record, make: Maker) -> Iterator[Row]:
    for i in record.objects(make.log):
        region = record.regions[i]
        if region.category and make.wanted():
            with make.telling(record, f"region {region.id or i}"):
                answer = make.draw("name_region", "answers", category=clean(region.category))
                question = make.draw("name_region", "questions")
                yield make.row(record, region.id, question, answer, [record.rle(i)], asks_for_masks=False)


@task("mask alone, for stage 1")
def masks(record: Record, make: Maker) -> Iterator[Row]:
    for i, region in enumerate(record.regions):
        if region.mask is not None and make.wanted():
            with make.telling(record, f"region {region.id or i}"):
                yield {"masks": [record.rle(i)], "source": make.source(record, region.id or str(i))}


# ----- conversations


@task("text with a mask behind each phrase, and questions with their answers, as the dataset has them")
def converse(record: Record, make: Maker) -> Iterator[Row]:
    for grounded in record.grounded:
        if make.wanted():
            with make.telling(record, f"text {grounded.id}"):
                text, masks = "", []
                for piece in grounded.pieces:
                    if isinstance(piece, str):
                        text += piece
                        continue
                    phrase, targets = piece
                    masks += _target_masks(record, targets, make.options)
                    count = 1 if make.options.merge_targets else len(targets)
                    text += f"<ref>{phrase}</ref>" + MASK_PLACEHOLDER * count
                _check_count(masks, make.options)
                clean(text.replace(MASK_PLACEHOLDER, ""))
                question = make.draw("converse", "questions") if grounded.question is None else clean(grounded.question)
                asks = grounded.question is None or bool(masks)
                yield make.row(record, grounded.id, question, text.strip(), masks, asks_for_masks=asks)
    for dialogue in record.dialogues:
        if make.wanted():
            with make.telling(record, f"question {dialogue.id}"):
                # The reference's placeholder becomes `<mask>` wherever rows are read: here as well, to be counted.
                question, answer = map(reference_placeholder_to_mask, (dialogue.question, dialogue.answer))
                marks = "".join((question, *dialogue.options, answer)).count(MASK_PLACEHOLDER)
                if marks != len(dialogue.masks):
                    raise BadEntry(MASKS_DO_NOT_FIT, f"{marks} {MASK_PLACEHOLDER} for {len(dialogue.masks)} masks")
                for text in (question, answer, *dialogue.options):
                    clean_with_masks(text)
                if dialogue.options:
                    lines = "\n".join(f"{chr(ord('A') + n)}. {option}" for n, option in enumerate(dialogue.options))
                    question = make.draw("choose", "questions", question=question, options=lines)
                elif dialogue.pool is not None:
                    question = make.draw(dialogue.pool, "questions", question=question)
                rles = [record.rle(i) for i in dialogue.masks]
                asks = MASK_PLACEHOLDER in answer
                yield make.row(record, dialogue.id, question, answer, rles, asks_for_masks=asks)
