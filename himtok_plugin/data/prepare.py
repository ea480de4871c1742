"""Datasets to rows: reads records in several processes, makes rows of them, writes them in order. `himtok prepare`.

Contract: the same arguments give the same bytes, whatever the number of processes: everything random is drawn per image
from the seed and the image's own place. Without `limit` rows come in the dataset's order; with it images are taken in
an order drawn by the seed until there are so many rows, so that a smaller limit gives the beginning of a larger one's.
Memory does not grow with the rows. OUT appears in one stroke when it is complete.
Does not know any format, any task, ms-swift or torch.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from himtok_plugin.jobs.worker_pool import map_ordered

from .catalog import format_named, open_reader
from .formats.reader import Reader, Source
from .prompts import Prompts
from .records import BAD_ENTRY, BadEntry, Record, SkipLog, StrictError
from .tasks import DEFAULT_SENTENCES, TASKS, Maker, Phrase, TaskOptions

NEGATIVES_FROM = 1000  # images whose expressions are asked of others
NEGATIVES = 8192  # most of them

OnImages = Callable[[int, int], None]  # images read, images in all


@dataclass(frozen=True)
class Job:
    """What is to be made of a dataset.

    Attributes:
        tasks: name -> share of its rows, in (0, 1]; empty: the dataset's own defaults.
        limit: rows at most.
        seed: of prompts, shares, negatives and, with a limit, of which images are taken.
        num_workers: processes that read, 0: this one does.
        strict: stop at the first thing that would be skipped.
    """

    source: Source
    tasks: dict[str, float] = field(default_factory=dict)
    options: TaskOptions = field(default_factory=TaskOptions)
    prompts: Path | None = None
    limit: int | None = None
    seed: int = 0
    num_workers: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        if self.options.sentences is None:
            sentences = default_sentences(self.source.name, self.source.split)
            object.__setattr__(self, "options", replace(self.options, sentences=sentences))
        if not self.tasks:
            object.__setattr__(self, "tasks", dict.fromkeys(format_named(self.source.name).tasks, 1.0))
        for name, share in self.tasks.items():
            if name not in TASKS:
                raise ValueError(f"task: got {name!r}, expected one of {', '.join(TASKS)}")
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise ValueError(f"task: {name}: got the share {share!r}, expected a number above 0, at most 1")
        if self.limit is not None and (isinstance(self.limit, bool) or self.limit < 1):
            raise ValueError(f"limit: got {self.limit}, expected at least 1")


def default_sentences(name: str, split: str) -> str:
    """Which expressions are asked of a dataset's split: ReasonSeg is evaluated with the first one of each image."""
    return "first" if name == "reasonseg" and split.startswith(("val", "test")) else DEFAULT_SENTENCES


@dataclass
class PrepareSummary:
    """What a run did.

    Attributes:
        images: tasks of the reader that were read, an image or an entry each.
        rows, masks: that were written.
        empty: rows without a mask, as questions for what is not there are.
        skipped: reason -> how often.
        seconds: that it took.
    """

    images: int = 0
    rows: int = 0
    masks: int = 0
    empty: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class MadeRow:
    """A row as JSON, and its number of masks."""

    line: bytes
    masks: int


def prepare_samples(job: Job, out: Path, on_progress: OnImages | None = None) -> PrepareSummary:
    """Write the rows of a job, and OUT.skipped.jsonl if anything was skipped.

    Raises:
        ValueError: the dataset cannot be read, or a strict run met something to skip.
        OSError: files that cannot be read or written.
    """
    begin, summary = time.monotonic(), PrepareSummary()
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file, replacing(skip_file(out), empty=False) as skipped:
        for row in make_rows(job, summary, skipped, on_progress):
            file.write(row.line + b"\n")
    summary.seconds = time.monotonic() - begin
    return summary


def skip_file(out: Path) -> Path:
    return out.with_name(out.name + ".skipped.jsonl")


def make_rows(
    job: Job, summary: PrepareSummary, skipped: BinaryIO | None = None, on_progress: OnImages | None = None
) -> Iterator[MadeRow]:
    """The rows of a job, in order.

    Args:
        summary: is counted up.
        skipped: gets a line of JSON for everything left out.
        on_progress: called now and then.
    """
    log = SkipLog(job.strict)
    reader = open_reader(job.source)
    tasks = reader.tasks(log)
    _drain(log.entries, summary, skipped)
    if not tasks and not summary.skipped:
        raise ValueError(
            f"{job.source.name}: {job.source.root} holds nothing of split {job.source.split!r}, expected some of it"
        )
    order: Sequence[int] = range(len(tasks))
    if job.limit is not None:
        order = np.random.default_rng(job.seed).permutation(len(tasks))
    work = _Work(reader, job, Prompts.load(job.prompts), negative_phrases(reader, tasks, job))
    calls = _calls(order, tasks, reader.tasks_per_call)
    for made, entries, images in map_ordered(work, calls, job.num_workers):
        _drain(entries, summary, skipped)
        summary.images += images
        for row in made:
            summary.rows += 1
            summary.masks += row.masks
            summary.empty += not row.masks
            yield row
            if summary.rows == job.limit:
                return
        if on_progress is not None:
            on_progress(summary.images, len(tasks))


def _calls(order: Sequence[int], tasks: Sequence[Any], size: int) -> Iterator[list[tuple[int, Any]]]:
    numbers = iter(order)
    while batch := [(int(n), tasks[int(n)]) for n in islice(numbers, size)]:
        yield batch


def _drain(entries: Iterable[tuple[str, str]], summary: PrepareSummary, skipped: BinaryIO | None) -> None:
    for reason, detail in entries:
        summary.skipped[reason] = summary.skipped.get(reason, 0) + 1
        if skipped is not None:
            line = json.dumps({"reason": reason, "detail": detail}, ensure_ascii=False)
            skipped.write(line.encode("utf-8", "backslashreplace") + b"\n")


class _Work:
    """What a process does with some tasks; sent to it once."""

    def __init__(self, reader: Reader, job: Job, prompts: Prompts, negatives: list[Phrase]) -> None:
        self._reader, self._job, self._prompts, self._negatives = reader, job, prompts, negatives

    def __call__(self, tasks: list[tuple[int, Any]]) -> tuple[list[MadeRow], list[tuple[str, str]], int]:
        log, rows = SkipLog(self._job.strict), []
        for number, task in tasks:
            # Text, whose hash by `random` is the same in every process.
            rng = random.Random(f"{self._job.seed}/{number}")
            for record in read_records(self._reader, task, log):
                rows += self._rows(record, rng, log)
        return rows, log.entries, len(tasks)

    def _rows(self, record: Record, rng: random.Random, log: SkipLog) -> list[MadeRow]:
        source, job = self._job.source, self._job
        make = Maker(self._prompts, rng, log, job.options, self._negatives, source.name, source.split)
        made = []
        for make.task, make.share in job.tasks.items():
            for row in TASKS[make.task].function(record, make):
                line = json.dumps(row, ensure_ascii=False).encode()
                made.append(MadeRow(line, len(row["masks"])))
        return made


def read_records(reader: Reader, task: Any, log: SkipLog) -> Iterator[Record]:
    """The records of a task; what is wrong with it as a whole is told to the log."""
    try:
        yield from reader.records(task, log)
    except StrictError:
        raise
    except BadEntry as error:
        log.skip_entry(error, reader.source.name)
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        # An entry of a shape that its reader did not think of.
        log.skip(BAD_ENTRY, f"{reader.source.name}: {str(task)[:200]}: {type(error).__name__}: {error}")


def negative_phrases(reader: Reader, tasks: Sequence[Any], job: Job) -> list[Phrase]:
    """Expressions and class names of images drawn by the seed, for tasks that ask for what is not there."""
    if not any(TASKS[name].needs_negatives for name in job.tasks):
        return []
    rng = random.Random(f"{job.seed}/negatives")
    phrases: list[Phrase] = []
    for number in sorted(rng.sample(range(len(tasks)), min(NEGATIVES_FROM, len(tasks)))):
        # What is skipped here is counted when its rows are made.
        for record in read_records(reader, tasks[number], SkipLog()):
            phrases += _phrases(record)
    return rng.sample(phrases, min(NEGATIVES, len(phrases)))


def _phrases(record: Record) -> Iterator[Phrase]:
    from .tasks import clean

    for query in record.queries:
        if query.targets and not query.sentence:
            category = record.regions[query.targets[0]].category
            for text in query.expressions:
                try:
                    yield Phrase(clean(text), category, record.image_id, False)
                except BadEntry:
                    continue
    for name in sorted(record.present or ()):
        try:
            yield Phrase(clean(name), name, record.image_id, True)
        except BadEntry:
            continue


@contextmanager
def replacing(path: Path, empty: bool = True) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is written whole; without `empty` none that holds nothing."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with open(unfinished, "wb") as file:
            yield file
        if empty or unfinished.stat().st_size:
            os.replace(unfinished, path)
        else:
            path.unlink(missing_ok=True)
    finally:
        unfinished.unlink(missing_ok=True)
