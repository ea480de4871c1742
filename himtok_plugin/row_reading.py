"""Rows of a dataset with their masks as squares, read ahead by processes of their own.

Contract: order is kept, and so much is read ahead as keeps the processes busy, not more. A row that cannot be read
becomes a rejected line instead of an error, so that whoever asked decides what that means.
This module does not know models, torch and ms-swift: its processes import little, start quickly and stay small.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from .coco_masks import short
from .mask_rows import first_image_size, load_squares, row_masks
from .resumable_output import REJECTED
from .worker_pool import map_ordered

CODES = "mask_codes"
ROWS_PER_TASK = 8  # read at a time by a process; a row may hold a hundred masks, 64 kB each
TASKS_AHEAD = 2  # per process: what it is reading, and what it goes on with


@dataclass(frozen=True)
class ReadRow:
    """A row that was read.

    Attributes:
        line: its output, without `mask_codes`.
        squares: fingerprints of its masks' squares; None for a line that is finished as it is.
    """

    line: bytes
    squares: list[bytes] | None = None


Task = tuple[list[ReadRow], dict[bytes, np.ndarray]]  # rows, and every square that they speak of: uint8 (s, s)


def read_rows(lines: Iterator[tuple[int, bytes]], side: int, num_workers: int) -> Iterator[Task]:
    """Rows of (number, line) in order, read ahead by `num_workers` processes; 0: by this one.

    Raises:
        ChildProcessError: a process was killed.
    """
    tasks = iter(lambda: list(islice(lines, ROWS_PER_TASK)), [])
    yield from map_ordered(partial(_read_task, side=side), tasks, num_workers, TASKS_AHEAD)


def _read_task(lines: Iterable[tuple[int, bytes]], side: int) -> Task:
    squares: dict[bytes, np.ndarray] = {}
    return [_read_row(number, line.strip(), side, squares) for number, line in lines], squares


def _read_row(number: int, line: bytes, side: int, squares: dict[bytes, np.ndarray]) -> ReadRow:
    """Read one row's masks into `squares`."""
    name = f"row {number}"
    try:
        if not line:
            return ReadRow(line)
        row = _parse(line, name)
        masks = row_masks(row, name)
        if masks is None:
            return ReadRow(line)
        size = first_image_size(row) if masks else None
        loaded = load_squares(dict(enumerate(masks)), side, size, name)
    except ValueError as error:
        text = line.decode("utf-8", "backslashreplace")
        reject = json.dumps({"row": number, "error": str(error), "line": text}, ensure_ascii=False)
        return ReadRow(REJECTED + reject.encode("utf-8", "backslashreplace"))
    if CODES in row:  # of some other mask tokenizer, perhaps
        del row[CODES]
        line = json.dumps(row).encode()
    digests = [blake2b(square.tobytes(), digest_size=16).digest() for square in loaded]
    squares.update(zip(digests, loaded, strict=True))
    return ReadRow(line, digests)


def _parse(line: bytes, name: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{name}: is {short(row)}, expected a JSON object")
    return row
