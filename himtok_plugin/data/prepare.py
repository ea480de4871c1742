"""Converts a dataset to samples: `himtok prepare`. Worker processes read records and build samples of them.

Contract: the same arguments give the same bytes, whatever the number of processes: the random numbers of each item of
the dataset are seeded by `seed` and the item's number. Without `limit`, samples come in the dataset's order. With it,
items are taken in random order until there are `limit` samples, so that a smaller limit gives a prefix of a larger one.
Memory does not grow with the number of samples. OUT is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import errno
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from himtok_plugin.files.atomic_file import atomic_write
from himtok_plugin.files.output_file import check_replaceable_rows
from himtok_plugin.jobs.worker_pool import map_ordered
from himtok_plugin.validation import abridged, counted

from .catalog import find_format, find_split, open_reader
from .formats.reader import Reader, Source
from .label_conventions import drop_label_conventions
from .negative_phrases import draw_negative_phrases
from .polygon_checks import drop_bad_polygons
from .prepare_summary import NoRowsError, PrepareSummary
from .prompts import Prompts
from .records import Record
from .skip_log import BAD_ENTRY, NOT_UTF8, UNREADABLE_FILE, AnnotationError, SkipLog, StrictError
from .tasks import DEFAULT_SENTENCES, TASKS, Phrase, SampleBuilder, TaskOptions
from .unused_annotations import explain_idle_task, explain_no_rows, log_unused, survey

SURVEYED_ITEMS = 200  # items that are looked at for the reason why there are no rows

OnImages = Callable[[int, int], None]  # (images read, images in total)


@dataclass(frozen=True)
class PrepareJob:
    """How a dataset is converted.

    Attributes:
        tasks: name -> share of its samples, in (0, 1]; empty: the dataset's default tasks, or, if it has none, those
            that its reader chooses.
        limit: the most samples.
        seed: of prompts, shares, negatives and, with a limit, of which images are taken.
        num_workers: worker processes; 0: this process does the work.
        strict: stop at the first annotation that would be skipped.
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
        split = find_split(self.source.name, self.source.split)
        object.__setattr__(self, "source", replace(self.source, split=split))
        if self.options.sentences is None:
            sentences = default_sentences(self.source.name, self.source.split)
            object.__setattr__(self, "options", replace(self.options, sentences=sentences))
        if not self.tasks:
            object.__setattr__(self, "tasks", dict.fromkeys(find_format(self.source.name).tasks, 1.0))
        for name, share in self.tasks.items():
            if name not in TASKS:
                raise ValueError(f"task: got {name!r}, expected one of {', '.join(TASKS)}")
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise ValueError(f"task: {name}: got the share {share!r}, expected a number above 0, at most 1")
        if self.limit is not None and (isinstance(self.limit, bool) or self.limit < 1):
            raise ValueError(f"limit: got {self.limit}, expected at least 1")


def default_sentences(name: str, split: str) -> str:
    """The default of `TaskOptions.sentences`: ReasonSeg is evaluated with the first expression of each image."""
    return "first" if name == "reasonseg" and split.startswith(("val", "test")) else DEFAULT_SENTENCES


@dataclass(frozen=True)
class SampleLine:
    """A sample as JSON, its number of masks, and its task."""

    line: bytes
    masks: int
    task: str


def prepare_samples(job: PrepareJob, out: Path, on_progress: OnImages | None = None) -> PrepareSummary:
    """Write the samples of a job, and OUT.skipped.jsonl if anything was skipped or is in no sample.

    Raises:
        NoRowsError: there are no samples. OUT.skipped.jsonl is written, OUT stays as it was.
        ValueError: the dataset cannot be read, or a strict run would skip an annotation.
        OSError: files that cannot be read or written.
    """
    check_replaceable_rows(out)
    begin, summary = time.monotonic(), PrepareSummary()
    out.parent.mkdir(parents=True, exist_ok=True)
    without_rows: NoRowsError | None = None
    with atomic_write(skipped_file(out), empty=False) as skipped:
        try:
            with atomic_write(out) as file:
                for sample in make_samples(job, summary, skipped, on_progress):
                    file.write(sample.line + b"\n")
        except NoRowsError as error:  # the list that says why is kept
            without_rows = error
    if without_rows is not None:
        listed = f"; see {skipped_file(out)}" if summary.skipped or summary.unused else ""
        raise NoRowsError(f"{without_rows}{listed}")
    summary.seconds = time.monotonic() - begin
    return summary


def skipped_file(out: Path) -> Path:
    return out.with_name(out.name + ".skipped.jsonl")


def make_samples(
    job: PrepareJob, summary: PrepareSummary, skipped: BinaryIO | None = None, on_progress: OnImages | None = None
) -> Iterator[SampleLine]:
    """Yield the samples of a job, in order.

    Args:
        summary: its counts are increased.
        skipped: file to which a line of JSON is written for each skipped annotation, and for each valid image or
            object that no sample is about.
        on_progress: called from time to time.
    Raises:
        NoRowsError: there are no samples.
    """
    log = SkipLog(job.strict)
    reader = open_reader(job.source)
    items = reader.list_items(log)
    summary.count(log.entries, log.unused, skipped)
    summary.notes += log.notes
    remarks = _Remarks()
    remarks.add(log.remarks)
    if not items:
        reasons = "".join(
            f"; skipped {count}: {reason}, for example {summary.examples[reason]:.200}"
            for reason, count in summary.skipped.items()
        )
        raise NoRowsError(
            f"{job.source.name}: {job.source.root} has no images of the split {job.source.split!r}, expected some"
            f"{reasons}"
        )
    if not job.tasks:
        chosen, why = reader.choose_tasks()
        job = replace(job, tasks=dict.fromkeys(chosen, 1.0))
        were = "was" if len(chosen) == 1 else "were"
        summary.notes.append(f"{job.source.name}: without --task, {' and '.join(chosen)} {were} chosen: {why}")
    summary.tasks.update(dict.fromkeys(job.tasks, 0))
    order: Iterable[int] = range(len(items))
    if job.limit is not None:
        order = np.random.default_rng(job.seed).permutation(len(items))
    negatives: list[Phrase] = []
    if any(TASKS[name].needs_negatives for name in job.tasks):
        # What is skipped here is counted when the item is converted.
        negatives = draw_negative_phrases(len(items), lambda n: read_or_skip(reader, items[n], SkipLog()), job.seed)
    convert = _ItemConverter(reader, job, Prompts.load(job.prompts), negatives)
    batches = _batch_items(order, items, reader.items_per_call)
    unwanted: set[str] = set()
    for found in map_ordered(convert, batches, job.num_workers):
        summary.count(found.skipped, found.unused, skipped)
        remarks.add(found.remarks)
        unwanted |= found.tasks_with_unwanted
        summary.images += found.images
        for sample in found.samples:
            summary.rows += 1
            summary.tasks[sample.task] += 1
            summary.masks += sample.masks
            summary.empty += not sample.masks
            yield sample
            if summary.rows == job.limit:
                summary.notes += remarks.to_notes()
                return
        if on_progress is not None:
            on_progress(summary.images, len(items))
    summary.notes += remarks.to_notes()
    idle = [name for name, count in summary.tasks.items() if not count and name not in unwanted]
    summary.notes += [explain_idle_task(name) for name in idle if summary.rows]
    if not summary.rows:
        raise NoRowsError(_explain_no_rows(reader, items, job, summary))


def _explain_no_rows(reader: Reader, items: Sequence[Any], job: PrepareJob, summary: PrepareSummary) -> str:
    numbers = np.random.default_rng(job.seed).permutation(len(items))[:SURVEYED_ITEMS]
    records = (record for number in sorted(numbers) for record in read_or_skip(reader, items[int(number)], SkipLog()))
    found = survey(records, Prompts.load(job.prompts), job.options)
    reasons = {**summary.skipped, **summary.unused}
    return explain_no_rows(job.source.name, summary.images, job.tasks, reasons, summary.examples, found, reader.hint)


def _batch_items(order: Iterable[int], items: Sequence[Any], size: int) -> Iterator[list[tuple[int, Any]]]:
    numbers = iter(order)
    while batch := [(int(n), items[int(n)]) for n in islice(numbers, size)]:
        yield batch


@dataclass(frozen=True)
class _Converted:
    """What some items became; the pairs are (reason, detail)."""

    samples: list[SampleLine]
    skipped: list[tuple[str, str]]
    unused: list[tuple[str, str]]
    remarks: list[tuple[str, str]]
    tasks_with_unwanted: set[str]
    images: int


class _Remarks:
    """Counts remarks by what they are about, each with its first example."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, remarks: Iterable[tuple[str, str]]) -> None:
        for what, example in remarks:
            count, first = self._found.get(what, (0, example))
            self._found[what] = count + 1, first

    def to_notes(self) -> list[str]:
        return [f"{counted(count, 'time')}: {what}: {example}" for what, (count, example) in self._found.items()]


class _ItemConverter:
    """Converts items of a dataset to samples; sent to each worker process once."""

    def __init__(self, reader: Reader, job: PrepareJob, prompts: Prompts, negatives: list[Phrase]) -> None:
        self._reader, self._job, self._prompts, self._negatives = reader, job, prompts, negatives

    def __call__(self, items: list[tuple[int, Any]]) -> _Converted:
        log = SkipLog(self._job.strict)
        samples: list[SampleLine] = []
        unwanted: set[str] = set()
        for number, item in items:
            # A string, which `random` hashes to the same seed in every process.
            rng = random.Random(f"{self._job.seed}/{number}")
            logged = len(log.entries) + len(log.unused)
            for record in read_or_skip(self._reader, item, log):
                samples += self._convert(drop_bad_polygons(record, log), rng, log, logged, unwanted)
                logged = len(log.entries) + len(log.unused)
        return _Converted(samples, log.entries, log.unused, log.remarks, unwanted, len(items))

    def _convert(
        self, record: Record, rng: random.Random, log: SkipLog, logged: int, unwanted: set[str]
    ) -> list[SampleLine]:
        """The samples of a record.

        Args:
            logged: how many entries the log had before the record was read.
            unwanted: gets the tasks of which a sample was not built, because of its share.
        """
        source, job = self._job.source, self._job
        builder = SampleBuilder(self._prompts, rng, log, job.options, self._negatives, source.name, source.split)
        lines = []
        for builder.task, builder.share in job.tasks.items():
            for sample in TASKS[builder.task].function(record, builder):
                try:
                    line = json.dumps(sample, ensure_ascii=False).encode()
                except UnicodeEncodeError as error:  # half of a character, written as \ud83d in JSON
                    log.add(NOT_UTF8, f"image {record.image_id}: {abridged(error.object[error.start :][:20])}")
                    continue
                lines.append(SampleLine(line, len(sample["masks"]), builder.task))
        if not builder.tasks_with_unwanted:
            log_unused(record, list(job.tasks), bool(lines), log, logged)
        unwanted |= builder.tasks_with_unwanted
        return lines


def read_or_skip(reader: Reader, item: Any, log: SkipLog) -> Iterator[Record]:
    """Yield the records of an item; if the item as a whole cannot be read, log it as skipped."""
    try:
        for record in reader.read_records(item, log):
            yield drop_label_conventions(record, log)
    except StrictError:
        raise
    except AnnotationError as error:
        log.add_error(error, reader.source.name)
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        log.add(
            UNREADABLE_FILE, f"{reader.source.name}: {error.filename or str(item)[:200]}: {error.strerror or error}"
        )
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        # An entry whose structure its reader does not expect.
        log.add(BAD_ENTRY, f"{reader.source.name}: {str(item)[:200]}: {type(error).__name__}: {error}")


# Errors that every other file would have as well: the disk is full, too many files are open, memory ran out.
_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
