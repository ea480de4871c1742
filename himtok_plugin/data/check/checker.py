"""Files of rows checked before a training relies on them: `himtok prepare check`.

Purpose: find what would stop or spoil a run (masks of another size, placeholders that do not fit, missing images),
count images that training and evaluation share, and draw samples to look at.
Contract: rows are read in several processes and forgotten; 16 bytes per row and image stay. A row with several faults
counts as one bad row and several faults.
Does not know what can be wrong with a row (`row_faults.py`) nor how rows were made; ms-swift and torch are not needed.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from himtok_plugin.data.prepare import replacing
from himtok_plugin.data.samples import parse_row
from himtok_plugin.jobs.worker_pool import map_ordered

from .findings import RowCheck, image_ids

LINES_PER_CALL = 64
EXAMPLES = 20  # bad rows that are listed; all of them are counted

OnBytes = Callable[[int, int], None]  # bytes read, bytes in all


@dataclass
class CheckReport:
    """What was found.

    Attributes:
        rows, masks, boxes, empty: of the file; empty are rows without a mask.
        images: different ones.
        bad_rows: with at least one fault.
        faults: kind -> how often.
        examples: (row, kind, what), the first ones.
        repeated: rows that stand in the file before already.
        leaks: name of an evaluation file or split -> {images, rows} of this file that are in it, too.
    """

    rows: int = 0
    masks: int = 0
    boxes: int = 0
    empty: int = 0
    images: int = 0
    bad_rows: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[int, str, str]] = field(default_factory=list)
    repeated: int = 0
    leaks: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not (self.bad_rows or self.repeated or any(leak["rows"] for leak in self.leaks.values()))


def check(
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
    """Check a file of rows.

    Args:
        against: files of rows for evaluation, whose images are not to be in `path`.
        root: where relative images and masks start from; None: the working directory.
        strict: stop at the first bad row.
        html: a page of sample rows to look at, `samples` of them drawn by `seed`.
        without_leaks: gets the rows that show no image of `against`.
    Raises:
        ValueError: a bad row in a strict run, or a file without rows.
        OSError: files that cannot be read.
    """
    report, images, digests = CheckReport(), array("Q"), array("q")
    row_of_image, splits = array("Q"), {"train": array("Q")}
    drawn = _Reservoir(samples if html is not None else 0, seed)
    faults: Counter[str] = Counter()
    number = 0
    for lines, checked, consumed in _checked_blocks(path, root, num_workers):
        for line, row in zip(lines, checked, strict=True):
            number += 1
            if row is None:
                continue
            report.rows += 1
            report.masks += row.masks
            report.boxes += row.boxes
            report.empty += not row.masks
            report.bad_rows += bool(row.faults)
            for kind, what in row.faults:
                if strict:
                    raise ValueError(f"{path}: row {number}: {what}")
                faults[kind] += 1
                if len(report.examples) < EXAMPLES:
                    report.examples.append((number, kind, what))
            digests.append(row.digest)
            images.extend(row.images)
            row_of_image.extend([number] * len(row.images))
            splits.setdefault("train" if row.made_for_training else row.split, array("Q")).extend(row.images)
            drawn.offer(number, line)
        if on_progress is not None:
            on_progress(*consumed)
    if not report.rows:
        raise ValueError(f"{path}: holds no rows")
    report.faults = dict(faults.most_common())
    ids = np.array(images, dtype=np.uint64)
    report.images = len(np.unique(ids))
    report.repeated = report.rows - len(np.unique(np.array(digests, dtype=np.int64)))
    report.leaks |= _leaks_within(splits)
    leaked_rows = _leaks_against(against, root, ids, np.array(row_of_image, dtype=np.uint64), report)
    if without_leaks is not None:
        _write_others(path, leaked_rows, without_leaks)
    if html is not None:
        from .page import write_sample_page

        write_sample_page(drawn.lines(), html, f"{path.name}: {len(drawn.lines())} of {report.rows} rows", root)
    return report


def _leaks_within(splits: dict[str, array]) -> dict[str, dict[str, int]]:
    """Of a file that holds rows of a training and of evaluation splits, by the latter's names."""
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
    leaked = np.zeros(0, np.uint64)
    for other in against:
        theirs = np.array(array("Q", _images_of(other, root)), dtype=np.uint64)
        shared = np.isin(ids, theirs)
        rows = np.unique(row_of_image[shared])
        report.leaks[str(other)] = {"images": len(np.unique(ids[shared])), "rows": len(rows)}
        leaked = np.union1d(leaked, rows)
    return leaked


def _images_of(path: Path, root: Path | None) -> Iterator[int]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield from image_ids(parse_row(line), root)
                except ValueError as error:
                    raise ValueError(f"{path}: row {number}: {error}") from error


def _write_others(path: Path, leaked_rows: np.ndarray, out: Path) -> None:
    if out.exists() and out.samefile(path):
        raise ValueError(f"--without_leaks is {str(out)!r}, the input itself: expected another file")
    leaked = set(leaked_rows.tolist())
    with open(path, "rb") as file, replacing(out) as kept:
        for number, line in enumerate(file, 1):
            if number not in leaked and line.strip():
                kept.write(line.rstrip(b"\r\n") + b"\n")


def _checked_blocks(path: Path, root: Path | None, num_workers: int) -> Iterator:
    """(lines, what was found in each, (bytes read, bytes in all))"""
    total = path.stat().st_size
    waiting: list[tuple[list[bytes], int]] = []

    def blocks() -> Iterator[list[bytes]]:
        with open(path, "rb") as file:
            at = 0
            while lines := [line for _, line in zip(range(LINES_PER_CALL), file, strict=False)]:
                at += sum(map(len, lines))
                waiting.append((lines, at))
                yield lines

    for checked in map_ordered(RowCheck(root), blocks(), num_workers):
        lines, at = waiting.pop(0)
        yield lines, checked, (at, total)


class _Reservoir:
    """Some lines of many, each with the same chance (Vitter's algorithm R)."""

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
