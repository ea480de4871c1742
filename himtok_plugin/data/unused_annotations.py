"""Why images and objects are in no row: counted for each record, and explained if a conversion makes no row at all.

Contract: `log_unused` runs after the tasks of a record; it adds what is valid and yet in no row to the log. What is
faulty is in the log already, as skipped. `explain_no_rows` and `explain_idle_task` name the reasons, what the tasks
need, and which tasks these annotations can serve.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .prompts import Prompts
from .records import Record
from .skip_log import (
    BOX_ONLY,
    INCOMPLETE_CLASS,
    INCOMPLETE_IMAGE,
    LOST_WITH_ROW,
    NO_ANNOTATIONS,
    NO_CLASS,
    NO_EXPRESSION,
    NO_ROW,
    NOT_ASKED,
    NOT_COUNTABLE,
    SkipLog,
)
from .tasks import TASKS, SampleBuilder, TaskOptions
from .tasks.sample_builder import (
    CLASSES,
    EXPRESSIONS,
    EXPRESSIONS_OF_ONE,
    OBJECTS,
    OBJECTS_OF_CLASSES,
    OTHER_EXPRESSIONS,
    REFERENTS,
    uncountable_classes,
)

_OF_CLASSES = {CLASSES, OBJECTS_OF_CLASSES}
_OF_EXPRESSIONS = {EXPRESSIONS, EXPRESSIONS_OF_ONE, REFERENTS}
MOST_REASONS = 4  # in an error of one line


def log_unused(record: Record, tasks: Sequence[str], has_rows: bool, log: SkipLog, logged_before: int) -> None:
    """Add the objects of a record that are in no row, or the image if nothing else says why it has no row.

    Args:
        tasks: those that were asked about the record, without shares.
        has_rows: whether they made any row.
        logged_before: how many entries, skipped or unused, the log had when the record was begun.
    """
    for i, region in enumerate(record.regions):
        if (reason := unused_reason(record, i, tasks)) is not None:
            name = f", {region.category}" if region.category else ""
            log.add_unused(reason, f"image {record.image_id}{name}, region {region.id or i}")
    if not has_rows and len(log.entries) + len(log.unused) == logged_before:
        is_empty = not (record.regions or record.queries or record.grounded_texts or record.dialogues)
        log.add_unused(NO_ANNOTATIONS if is_empty else NO_ROW, f"image {record.image_id}: {record.image}")


def unused_reason(record: Record, index: int, tasks: Sequence[str]) -> str | None:
    """Why a region is in no row; None if it is in one, or if the log says already why it is not."""
    region, needs = record.regions[index], {TASKS[name].needs for name in tasks} - {OTHER_EXPRESSIONS}
    if (
        not needs
        or index in record.accounted
        or record.has_bad_mask(index)
        or (region.crowd and record.has_logged_crowds)
    ):
        return None
    if index in record.lost:
        return LOST_WITH_ROW
    if region.mask is None:
        return BOX_ONLY
    if needs <= _OF_CLASSES and not region.category:
        return NO_CLASS
    if needs & _OF_CLASSES and region.category in record.incomplete_classes:
        return INCOMPLETE_CLASS
    if needs & {OBJECTS, OBJECTS_OF_CLASSES} and (region.stuff or region.category in uncountable_classes(record)):
        return NOT_COUNTABLE
    if needs & _OF_CLASSES:
        return INCOMPLETE_IMAGE if uncountable_classes(record) else NOT_ASKED
    has_expression = any(index in query.targets for query in record.queries)
    return NO_EXPRESSION if needs <= _OF_EXPRESSIONS and not has_expression else NOT_ASKED


@dataclass
class Annotations:
    """What the records of a dataset have, and the tasks that can ask about it.

    Attributes:
        records, masks, boxes: numbers of records, of regions with a mask, and of regions with a box only.
        classes: number of regions with a class.
        expressions: number of queries.
        tasks: those that make rows.
    """

    records: int = 0
    masks: int = 0
    boxes: int = 0
    classes: int = 0
    expressions: int = 0
    tasks: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """For example "masks without classes: 12, expressions: 0"."""
        if not self.masks + self.boxes + self.expressions:
            return "no annotations that can be used"
        parts = [f"masks {'with' if self.classes else 'without'} classes: {self.masks}"] if self.masks else []
        parts += [f"boxes without masks: {self.boxes}"] if self.boxes else []
        return ", ".join([*parts, f"expressions: {self.expressions}"])


def survey(records: Iterator[Record], prompts: Prompts, options: TaskOptions) -> Annotations:
    """Count what records have, and try all tasks on them."""
    found, works = Annotations(), dict.fromkeys(TASKS, False)
    builder = SampleBuilder(prompts, random.Random(0), SkipLog(), options)
    for record in records:
        found.records += 1
        found.masks += sum(region.mask is not None for region in record.regions)
        found.boxes += sum(region.mask is None for region in record.regions)
        found.classes += sum(bool(region.category) for region in record.regions)
        found.expressions += len(record.queries)
        for name in works:
            builder.task = name
            # Tasks with negatives are left out: they ask about other images.
            works[name] = works[name] or (
                not TASKS[name].needs_negatives and next(TASKS[name].function(record, builder), None) is not None
            )
    found.tasks = [name for name, does in works.items() if does]
    return found


def explain_no_rows(
    dataset: str,
    images: int,
    tasks: Mapping[str, float],
    reasons: Mapping[str, int],
    examples: Mapping[str, str],
    found: Annotations,
    hint: str = "",
) -> str:
    """The error of a conversion without rows, in one line: what was found, why it makes no row, and what to do.

    Args:
        reasons, examples: reason -> how often, and the first detail of it.
        hint: what else to know about the format.
    """
    counted = sorted(reasons.items(), key=lambda entry: -entry[1])[:MOST_REASONS]
    shown = [f"{count} x {reason}, for example {examples[reason]:.300}" for reason, count in counted]
    listed = "; ".join(shown) or "no sample was drawn"
    text = f"{dataset}: got no rows of {images} image{'s' * (images != 1)} for --task {', '.join(tasks)} ({listed})"
    needs = " or ".join(dict.fromkeys(TASKS[name].needs for name in tasks))
    if others := [name for name in found.tasks if name not in tasks]:
        choose = f"there are {found.describe()}; choose --task {' or '.join(others)}"
        return "; ".join(filter(None, [f"{text}, expected {needs}", choose, hint]))
    if any(name in found.tasks for name in tasks):
        return f"{text}, expected a larger share of the tasks"
    if found.boxes and not found.masks:
        export = "export the annotations as segmentation, not detection"
        return "; ".join(filter(None, [f"{text}, expected segmentation polygons or masks: {export}", hint]))
    return "; ".join(filter(None, [f"{text}, expected {needs}; there are {found.describe()}", hint]))


def explain_idle_task(name: str) -> str:
    """The note about a task that made no row while others did."""
    return f"--task {name} made no row: it needs {TASKS[name].needs}"
