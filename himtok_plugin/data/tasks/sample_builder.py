"""What all tasks use: their registry, their options, and the `SampleBuilder` that they build samples with.

Contract: `@register_task` registers a function that turns a record into samples. Annotations that no sample can be
built from are added to the log. Everything random is drawn from `SampleBuilder.rng`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from himtok_plugin.data.prompts import Prompts
from himtok_plugin.data.records import Box, Record, RegionMask, Rle, region_to_rle, union_rles
from himtok_plugin.data.skip_log import EMPTY_MASK, MISSING_IMAGE, TOO_MANY, AnnotationError, SkipLog
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, MASK_PLACEHOLDER

from .wording import join_placeholders, strip_article

SENTENCES = ("each", "one", "first", "joined")
DEFAULT_SENTENCES = "each"

MIN_NUMBERS = 6  # x, y of three points: what encloses an area

Sample = dict[str, Any]


@dataclass(frozen=True)
class Phrase:
    """An expression or class name of one image, for questions about another image."""

    text: str
    category: str | None
    image_id: str
    is_class: bool


@dataclass(frozen=True)
class TaskOptions:
    """Options of several tasks.

    Attributes:
        sentences: a sample for `each` expression of a referent, for `one` of them at random, for the `first`, or for
            all `joined` in one question, as in the paper's code. None: what the dataset's split is evaluated with, or
            `each`.
        merge_targets: whether several targets become one mask.
        max_masks: the most masks of a sample; what needs more is skipped.
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
class SampleBuilder:
    """Builds the samples of one record.

    Attributes:
        negatives: phrases of other images.
        dataset, split: for the column `source`.
        task: the task that is running.
        share: how much of this task's samples is wanted, in (0, 1].
        tasks_with_unwanted: the tasks of which a sample was not built, because of its share.
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
    tasks_with_unwanted: set[str] = field(default_factory=set)

    def is_sampled(self) -> bool:
        """Whether to build the next sample; drawn first, so that unwanted samples cost nothing."""
        is_wanted = self.share >= 1 or self.rng.random() < self.share
        if not is_wanted:
            self.tasks_with_unwanted.add(self.task)
        return is_wanted

    @contextmanager
    def skip_on_error(self, record: Record, id: str, regions: Sequence[int] = ()) -> Iterator[None]:
        """Log an `AnnotationError` in the block, which builds one sample, as skipped.

        Args:
            regions: the indices of the regions that the sample is about.
        """
        try:
            yield
            record.accounted.update(regions)
        except AnnotationError as error:
            (record.lost if len(regions) > 1 else record.accounted).update(regions)
            self.log.add_error(error, f"image {record.image_id}, {id}" if id else f"image {record.image_id}")

    def draw(self, pool: str, kind: str, **fields: str) -> str:
        """Draw a text from a pool of prompts and fill in its fields."""
        if kind == "none":  # "There is no {expression}."
            fields = {name: strip_article(text) for name, text in fields.items()}
        return self.prompts.draw(pool, kind, self.rng, **fields)

    def build(
        self,
        record: Record,
        id: str,
        question: str,
        answer: str,
        masks: Sequence[Rle] = (),
        boxes: Sequence[Box] | None = None,
        asks_for_masks: bool = True,
        **scoring: Any,
    ) -> Sample:
        """Build a sample of one question and its answer.

        Args:
            asks_for_masks: whether an answer without a mask means that nothing in the image matches the question.
            scoring: further columns, which evaluation reads and training does not.
        Raises:
            AnnotationError: there is no image.
        """
        if record.image is None:
            raise AnnotationError(MISSING_IMAGE, "it is not a file of its own: only the task `masks` works without")
        sample: Sample = {
            "messages": [
                {"role": "user", "content": f"{IMAGE_PLACEHOLDER}{question}"},
                {"role": "assistant", "content": answer},
            ],
            "images": [record.image],
            "masks": list(masks),
        }
        if boxes is not None:
            sample["objects"] = {"ref": [], "bbox": [[round(value, 2) for value in box] for box in boxes]}
        sample.update(scoring, asks_for_masks=asks_for_masks)
        sample["source"] = self.source(record, id)
        return sample

    def source(self, record: Record, id: str) -> dict[str, str]:
        """Where a sample comes from; strings only, so that the column has the same type in every file."""
        return {
            "dataset": self.dataset,
            "split": self.split,
            "image_id": record.image_id,
            "id": id,
            "task": self.task,
        }


# What tasks need of the annotations, as messages name it.
CLASSES = "masks with classes"
OBJECTS_OF_CLASSES = "masks of single objects with classes"
OBJECTS = "masks of single objects"
MASKS = "masks"
EXPRESSIONS = "expressions"
OTHER_EXPRESSIONS = "expressions or classes of other images"
EXPRESSIONS_OF_ONE = "expressions of single objects with masks"
REFERENTS = "expressions, or classes of one object in their image, with masks"
TEXTS = "texts, or questions and answers"

TaskFunction = Callable[[Record, SampleBuilder], Iterator[Sample]]


@dataclass(frozen=True)
class Task:
    """A registered task.

    Attributes:
        about: its line in `--help`.
        needs: what it asks about, one of the constants above.
        needs_negatives: whether it uses phrases of other images.
    """

    function: TaskFunction
    about: str
    needs: str
    needs_negatives: bool


TASKS: dict[str, Task] = {}


def register_task(about: str, needs: str, needs_negatives: bool = False) -> Callable[[TaskFunction], TaskFunction]:
    """Register a function as the task of its name."""

    def register(function: TaskFunction) -> TaskFunction:
        TASKS[function.__name__] = Task(function, about, needs, needs_negatives)
        return function

    return register


def parse_task_share(text: str, name: str) -> tuple[str, float]:
    """Parse "segment" or "segment=0.5" into (task, share of its samples); `name` names the option in errors."""
    task, equals, share = text.partition("=")
    try:
        return task, float(share) if equals else 1.0
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r}, expected NAME or NAME=SHARE") from error


def draw_mask_answer(builder: SampleBuilder, pool: str, count: int, **fields: str) -> str:
    """Draw an answer with `count` masks; the fields are those of the answer without any."""
    if count == 0:
        return builder.draw(pool, "none", **fields)
    pool = pool if pool == "segment_instances" else "segment"  # segment_sentence has the answers of segment
    if count == 1:
        return builder.draw(pool, "one")
    return builder.draw(pool, "several", masks=join_placeholders(MASK_PLACEHOLDER, count))


def target_masks(record: Record, targets: Sequence[int], options: TaskOptions) -> list[Rle]:
    """The masks of some regions, merged into one if the options say so."""
    masks = [record.rle(i) for i in targets]
    if options.merge_targets and len(masks) > 1:
        masks = [union_rles(masks)]
    check_mask_count(masks, options)
    return masks


def drop_strays(record: Record, regions: Sequence[int], builder: SampleBuilder) -> list[int]:
    """Those of some regions that are objects; polygons that enclose no pixel are logged.

    Such a polygon, of one or two points or without an area, is left over from a click by mistake. Its class has no mask
    less without it, unlike with an object whose mask cannot be read.
    """
    kept = []
    for i in regions:
        try:
            record.rle(i)
        except AnnotationError as error:
            if _encloses_nothing(record.regions[i].mask, error):
                builder.log.add_error(error, f"image {record.image_id}, region {record.regions[i].id or i}")
                continue
        kept.append(i)
    return kept


def _encloses_nothing(mask: RegionMask, error: AnnotationError) -> bool:
    polygons = mask.get("polygons") if isinstance(mask, dict) else None
    if not isinstance(polygons, list | tuple) or not polygons:
        return False
    is_short = all(isinstance(polygon, list | tuple) and len(polygon) < MIN_NUMBERS for polygon in polygons)
    return is_short or error.reason == EMPTY_MASK


def check_mask_count(masks: Sequence[Any], options: TaskOptions) -> None:
    if len(masks) > options.max_masks:
        raise AnnotationError(TOO_MANY, f"got {len(masks)}, max_masks is {options.max_masks}")


def ignore_column(mask: RegionMask, record: Record) -> dict[str, Any]:
    """The column `ignore`; empty without an ignored region."""
    if mask is None:
        return {}
    try:
        return {"ignore": [region_to_rle(mask, record.size)]}
    except AnnotationError as error:
        if error.reason == EMPTY_MASK:  # covered by other shapes, or every pixel is labelled
            return {}
        raise


def is_absent(phrase: Phrase, record: Record) -> bool:
    """Whether the annotations imply that nothing in the image has the phrase's class."""
    if phrase.category is None:
        return record.present is None
    if phrase.category in record.incomplete_classes:
        return False
    if record.absent is not None:
        return phrase.category in record.absent
    return record.present is None or phrase.category not in record.present


def uncountable_classes(record: Record) -> set[str | None]:
    """Classes whose number of objects is unknown: incomplete ones, and those with a crowd."""
    return {*record.incomplete_classes, *(region.category for region in record.regions if region.crowd)}


def group_by_class(record: Record, indices: Sequence[int]) -> dict[str, list[int]]:
    """Class -> the indices of its regions, among `indices`."""
    found: dict[str, list[int]] = {}
    for i in indices:
        if category := record.regions[i].category:
            found.setdefault(category, []).append(i)
    return found
