"""Checks a file of samples before a training run: `himtok prepare check`.

It finds what would stop or spoil the run (masks of the wrong size, wrong numbers of placeholders, missing images),
counts the images that training and evaluation have in common, and draws random samples for a page.
Contract: samples are read in worker processes and not kept; 16 bytes per sample and image stay in memory. A sample with
several faults counts as one bad sample and several faults.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from himtok_plugin.data.row_files import NO_ROWS, iter_rows
from himtok_plugin.data.samples import parse_row
from himtok_plugin.files.atomic_file import atomic_write
from himtok_plugin.files.output_file import check_replaceable_rows
from himtok_plugin.jobs.worker_pool import map_ordered

from .findings import CheckedSample, SampleChecker, image_ids

LINES_PER_CALL = 64
MAX_EXAMPLES = 20  # faults that are listed; all are counted

OnBytes = Callable[[int, int], None]  # (bytes read, bytes in total)


@dataclass
class CheckReport:
    """The result of a check.

    Attributes:
        rows, masks, boxes: their numbers in the file.
        empty: samples without a mask.
        images: different images.
        turned: those of the images that are turned upright by their EXIF orientation.
        bad_rows: samples with at least one fault.
        faults: kind -> number.
        examples: (row, kind, description) of the first faults.
        repeated: samples that equal an earlier one.
        leaks: evaluation file or split -> {images, rows} of this file that are in it, too.
    """

    rows: int = 0
    masks: int = 0
    boxes: int = 0
    empty: int = 0
    images: int = 0
    turned: int = 0
    bad_rows: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[int, str, str]] = field(default_factory=list)
    repeated: int = 0
    leaks: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether there are neither faults nor repeated samples nor leaks."""
        return not (self.bad_rows or self.repeated or any(leak["rows"] for leak in self.leaks.values()))


def check_file(
    path: Path,
    against: Sequence[Path] = (),
    *,
    root: Path | None = None,
    num_workers: int = 0,
    strict: bool = False,
    html: Path | None = None,
    samples: int = 24,
    seed: int = 0,
    without_leaks: Path | None = None,
    on_progress: OnBytes | None = None,
) -> CheckReport:
    """Check a file of samples.

    Args:
        against: evaluation files, whose images must not be in `path`.
        root: folder of relative images and masks; None: the working directory.
        strict: stop at the first bad sample.
        html: where to write a page with `samples` random samples, drawn with `seed`.
        without_leaks: where to write the samples without an image of `against`.
    Raises:
        ValueError: a bad sample in a strict run, or a file without samples.
        OSError: files that cannot be read.
    """
    report, images, digests = CheckReport(), array("Q"), array("q")
    row_of_image, splits = array("Q"), {"train": array("Q")}
    drawn = _Reservoir(samples if html is not None else 0, seed)
    faults: Counter[str] = Counter()
    turned: set[int] = set()
    number = 0
    for lines, checked, consumed in _check_blocks(path, root, num_workers):
        for line, sample in zip(lines, checked, strict=True):
            number += 1
            if sample is None:
                continue
            report.rows += 1
            report.masks += sample.masks
            report.boxes += sample.boxes
            report.empty += not sample.masks
            turned.update(sample.turned)
            report.bad_rows += bool(sample.faults)
            for kind, what in sample.faults:
                if strict:
                    raise ValueError(f"{path}: row {number}: {what}")
                faults[kind] += 1
                if len(report.examples) < MAX_EXAMPLES:
                    report.examples.append((number, kind, what))
            digests.append(sample.digest)
            images.extend(sample.images)
            row_of_image.extend([number] * len(sample.images))
            splits.setdefault("train" if sample.made_for_training else sample.split, array("Q")).extend(sample.images)
            drawn.offer(number, line)
        if on_progress is not None:
            on_progress(*consumed)
    if not report.rows:
        raise ValueError(f"{path}: {NO_ROWS}")
    report.faults = dict(faults.most_common())
    report.turned = len(turned)
    ids = np.array(images, dtype=np.uint64)
    report.images = len(np.unique(ids))
    report.repeated = report.rows - len(np.unique(np.array(digests, dtype=np.int64)))
    report.leaks |= _leaks_within(splits)
    leaked_rows = _leaks_against(against, root, ids, np.array(row_of_image, dtype=np.uint64), report)
    if without_leaks is not None:
        _write_rest(path, leaked_rows, without_leaks)
    if html is not None:
        from .page import write_sample_page

        write_sample_page(drawn.lines(), html, f"{path.name}: {len(drawn.lines())} of {report.rows} rows", root)
    return report


def _leaks_within(splits: dict[str, array]) -> dict[str, dict[str, int]]:
    """Leaks between the training split and the evaluation splits of one file."""
    leaks = {}
    trained = np.array(splits["train"], dtype=np.uint64)
    for name in sorted(splits.keys() - {"train"}):
        shared = np.intersect1d(trained, np.array(splits[name], dtype=np.uint64))
        if len(shared):
            leaks[name] = {"images": len(shared), "rows": int(np.isin(trained, shared).sum())}
    return leaks


def _leaks_against(
    against: Sequence[Path], root: Path | None, ids: np.ndarray, row_of_image: np.ndarray, report: CheckReport
) -> np.ndarray:
    """Add the leaks to the report; returns the numbers of the samples with an image of an evaluation file."""
    leaked = np.zeros(0, np.uint64)
    for other in against:
        theirs = np.array(array("Q", _iter_image_ids(other, root)), dtype=np.uint64)
        shared = np.isin(ids, theirs)
        rows = np.unique(row_of_image[shared])
        report.leaks[str(other)] = {"images": len(np.unique(ids[shared])), "rows": len(rows)}
        leaked = np.union1d(leaked, rows)
    return leaked


def _iter_image_ids(path: Path, root: Path | None) -> Iterator[int]:
    for number, line, _, _ in iter_rows(path):
        if line.strip():
            try:
                yield from image_ids(parse_row(line), root)
            except ValueError as error:
                raise ValueError(f"{path}: row {number}: {error}") from error


def _write_rest(path: Path, leaked_rows: np.ndarray, out: Path) -> None:
    if out.exists() and out.samefile(path):
        raise ValueError(f"--without_leaks is {str(out)!r}, the input itself: expected another file")
    check_replaceable_rows(out)
    leaked = set(leaked_rows.tolist())
    with atomic_write(out) as kept:
        for number, line, _, _ in iter_rows(path):
            if number not in leaked and line.strip():
                kept.write(line.rstrip(b"\r\n") + b"\n")


def _check_blocks(
    path: Path, root: Path | None, num_workers: int
) -> Iterator[tuple[list[bytes], list[CheckedSample | None], tuple[int, int]]]:
    """Yield (lines, result for each line or None for an empty one, (bytes read, bytes in total))."""
    total = path.stat().st_size
    waiting: list[tuple[list[bytes], int]] = []

    def blocks() -> Iterator[list[bytes]]:
        rows = iter_rows(path)
        while block := list(islice(rows, LINES_PER_CALL)):
            lines = [row.line for row in block]
            waiting.append((lines, block[-1].end))
            yield lines

    for checked in map_ordered(SampleChecker(root), blocks(), num_workers):
        lines, at = waiting.pop(0)
        yield lines, checked, (at, total)


class _Reservoir:
    """A uniform random sample of lines (Vitter's algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._rng, self._seen = size, random.Random(f"{seed}/samples"), 0
        self._kept: list[tuple[int, bytes]] = []

    def offer(self, number: int, line: bytes) -> None:
        self._seen += 1
        if len(self._kept) < self._size:
            self._kept.append((number, line))
        elif self._size and (place := self._rng.randrange(self._seen)) < self._size:
            self._kept[place] = (number, line)

    def lines(self) -> list[tuple[int, bytes]]:
        return sorted(self._kept)
