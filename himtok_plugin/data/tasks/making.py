"""What the tasks share: their register, their options, the maker of rows, and how masks and classes are counted.

Contract: `@task` registers a function that turns a record into rows; `Maker` is what it works with. What a row cannot
be made of is told to the log. Everything random comes from `Maker.rng`. Does not know formats, files and processes.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from himtok_plugin.data.prompts import Prompts
from himtok_plugin.data.records import (
    EMPTY_MASK,
    MISSING_IMAGE,
    TOO_MANY,
    BadEntry,
    Box,
    Record,
    Rle,
    SkipLog,
    encode_region,
    union,
)
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, MASK_PLACEHOLDER

from .wording import listed, without_article

SENTENCES = ("each", "one", "first", "joined")
DEFAULT_SENTENCES = "each"

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

    def is_sampled(self) -> bool:
        """Whether to make the next row; drawn before any work goes into it."""
        return self.share >= 1 or self.rng.random() < self.share

    @contextmanager
    def skipping_bad_entries(self, record: Record, id: str) -> Iterator[None]:
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


def mask_answer(make: Maker, pool: str, count: int, **fields: str) -> str:
    if count == 0:
        return make.draw(pool, "none", **fields)
    pool = pool if pool == "segment_instances" else "segment"  # the words for masks are the same ones
    if count == 1:
        return make.draw(pool, "one")
    return make.draw(pool, "several", masks=listed(MASK_PLACEHOLDER, count))


def target_masks(record: Record, targets: Sequence[int], options: TaskOptions) -> list[Rle]:
    masks = [record.rle(i) for i in targets]
    if options.merge_targets and len(masks) > 1:
        masks = [union(masks, record.size)]
    check_count(masks, options)
    return masks


def check_count(masks: Sequence[Any], options: TaskOptions) -> None:
    if len(masks) > options.max_masks:
        raise BadEntry(TOO_MANY, f"got {len(masks)}, max_masks is {options.max_masks}")


def ignored(mask: Any, record: Record) -> dict[str, list[Rle]]:
    """The column `ignore`, where there is anything to be ignored."""
    if mask is None:
        return {}
    try:
        return {"ignore": [encode_region(mask, record.size)]}
    except BadEntry as error:
        if error.reason == EMPTY_MASK:  # painted over, or a map in which everything is labelled
            return {}
        raise


def is_absent(phrase: Phrase, record: Record) -> bool:
    if phrase.category is None:
        return record.present is None
    if phrase.category in record.incomplete_classes:
        return False
    if record.absent is not None:
        return phrase.category in record.absent
    return record.present is None or phrase.category not in record.present


def uncountable_classes(record: Record) -> set[str | None]:
    """Classes of which nobody can say how many objects there are, by the reader's word or for a crowd among them."""
    return {*record.incomplete_classes, *(region.category for region in record.regions if region.crowd)}


def by_class(record: Record, indices: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i in indices:
        if record.regions[i].category:
            found.setdefault(record.regions[i].category, []).append(i)
    return found
