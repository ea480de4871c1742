"""Converts a dataset to samples: `himtok prepare`. Worker processes read records and build samples of them.

Contract: the same arguments give the same bytes, whatever the number of processes: the random numbers of each item of
the dataset are seeded by `seed` and the item's number. Without `limit`, samples come in the dataset's order. With it,
items are taken in random order until there are `limit` samples, so that a smaller limit gives a prefix of a larger one.
Memory does not grow with the number of samples. OUT is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import glob
import json
import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from himtok_plugin.jobs.worker_pool import map_ordered

from .catalog import find_format, open_reader
from .formats.reader import Reader, Source
from .prompts import Prompts
from .records import BAD_ENTRY, AnnotationError, Record, SkipLog, StrictError
from .tasks import DEFAULT_SENTENCES, TASKS, Phrase, SampleBuilder, TaskOptions, clean_text

NEGATIVE_ITEMS = 1000  # items whose expressions are used as negatives for other images
MAX_NEGATIVES = 8192
UNFINISHED = ".unfinished"  # suffix of temporary files

OnImages = Callable[[int, int], None]  # (images read, images in total)


@dataclass(frozen=True)
class PrepareJob:
    """How a dataset is converted.

    Attributes:
        tasks: name -> share of its samples, in (0, 1]; empty: the dataset's default tasks.
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


@dataclass
class PrepareSummary:
    """The figures of a run.

    Attributes:
        images: items of the dataset that were read, an image or an entry each.
        rows, masks: how many samples and masks were written.
        empty: samples without a mask, such as questions about what is not in the image.
        skipped: reason -> number of skipped annotations.
        seconds: duration.
    """

    images: int = 0
    rows: int = 0
    masks: int = 0
    empty: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class SampleLine:
    """A sample as JSON, and its number of masks."""

    line: bytes
    masks: int


def prepare_samples(job: PrepareJob, out: Path, on_progress: OnImages | None = None) -> PrepareSummary:
    """Write the samples of a job, and OUT.skipped.jsonl if anything was skipped.

    Raises:
        ValueError: the dataset cannot be read, or a strict run would skip an annotation.
        OSError: files that cannot be read or written.
    """
    begin, summary = time.monotonic(), PrepareSummary()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file, atomic_write(skipped_file(out), empty=False) as skipped:
        for sample in make_samples(job, summary, skipped, on_progress):
            file.write(sample.line + b"\n")
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
        skipped: file to which a line of JSON is written for each skipped annotation.
        on_progress: called from time to time.
    """
    log = SkipLog(job.strict)
    reader = open_reader(job.source)
    items = reader.list_items(log)
    _count_skipped(log.entries, summary, skipped)
    if not items and not summary.skipped:
        raise ValueError(
            f"{job.source.name}: {job.source.root} has no images of the split {job.source.split!r}, expected some"
        )
    order: Iterable[int] = range(len(items))
    if job.limit is not None:
        order = np.random.default_rng(job.seed).permutation(len(items))
    convert = _ItemConverter(reader, job, Prompts.load(job.prompts), collect_negative_phrases(reader, items, job))
    batches = _batch_items(order, items, reader.items_per_call)
    for samples, entries, images in map_ordered(convert, batches, job.num_workers):
        _count_skipped(entries, summary, skipped)
        summary.images += images
        for sample in samples:
            summary.rows += 1
            summary.masks += sample.masks
            summary.empty += not sample.masks
            yield sample
            if summary.rows == job.limit:
                return
        if on_progress is not None:
            on_progress(summary.images, len(items))


def _batch_items(order: Iterable[int], items: Sequence[Any], size: int) -> Iterator[list[tuple[int, Any]]]:
    numbers = iter(order)
    while batch := [(int(n), items[int(n)]) for n in islice(numbers, size)]:
        yield batch


def _count_skipped(entries: Iterable[tuple[str, str]], summary: PrepareSummary, skipped: BinaryIO | None) -> None:
    for reason, detail in entries:
        summary.skipped[reason] = summary.skipped.get(reason, 0) + 1
        if skipped is not None:
            line = json.dumps({"reason": reason, "detail": detail}, ensure_ascii=False)
            skipped.write(line.encode("utf-8", "backslashreplace") + b"\n")


class _ItemConverter:
    """Converts items of a dataset to samples; sent to each worker process once."""

    def __init__(self, reader: Reader, job: PrepareJob, prompts: Prompts, negatives: list[Phrase]) -> None:
        self._reader, self._job, self._prompts, self._negatives = reader, job, prompts, negatives

    def __call__(self, items: list[tuple[int, Any]]) -> tuple[list[SampleLine], list[tuple[str, str]], int]:
        log = SkipLog(self._job.strict)
        samples: list[SampleLine] = []
        for number, item in items:
            # A string, which `random` hashes to the same seed in every process.
            rng = random.Random(f"{self._job.seed}/{number}")
            for record in read_or_skip(self._reader, item, log):
                samples += self._convert(record, rng, log)
        return samples, log.entries, len(items)

    def _convert(self, record: Record, rng: random.Random, log: SkipLog) -> list[SampleLine]:
        source, job = self._job.source, self._job
        builder = SampleBuilder(self._prompts, rng, log, job.options, self._negatives, source.name, source.split)
        lines = []
        for builder.task, builder.share in job.tasks.items():
            for sample in TASKS[builder.task].function(record, builder):
                line = json.dumps(sample, ensure_ascii=False).encode()
                lines.append(SampleLine(line, len(sample["masks"])))
        return lines


def read_or_skip(reader: Reader, item: Any, log: SkipLog) -> Iterator[Record]:
    """Yield the records of an item; if the item as a whole cannot be read, log it as skipped."""
    try:
        yield from reader.read_records(item, log)
    except StrictError:
        raise
    except AnnotationError as error:
        log.add_error(error, reader.source.name)
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        # An entry whose structure its reader does not expect.
        log.add(BAD_ENTRY, f"{reader.source.name}: {str(item)[:200]}: {type(error).__name__}: {error}")


def collect_negative_phrases(reader: Reader, items: Sequence[Any], job: PrepareJob) -> list[Phrase]:
    """Expressions and class names of images drawn at random, for tasks with questions about what is not in an image."""
    if not any(TASKS[name].needs_negatives for name in job.tasks):
        return []
    rng = random.Random(f"{job.seed}/negatives")
    phrases: list[Phrase] = []
    for number in sorted(rng.sample(range(len(items)), min(NEGATIVE_ITEMS, len(items)))):
        # What is skipped here is counted when the item is converted.
        for record in read_or_skip(reader, items[number], SkipLog()):
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


def remove_unfinished(path: Path) -> None:
    """Remove temporary files of `atomic_write` that a killed process has left; no other one may be writing `path`."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*{UNFINISHED}"):
        leftover.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, empty: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to `path` when the block ends without an error.

    Its name is new, so that several processes can write the same file: the last one that ends has written it.

    Args:
        empty: whether an empty file is kept; if not, `path` is deleted instead.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with open(unfinished, "xb") as file:
            yield file
        if empty or unfinished.stat().st_size:
            os.replace(unfinished, path)
        else:
            path.unlink(missing_ok=True)
    finally:
        unfinished.unlink(missing_ok=True)
