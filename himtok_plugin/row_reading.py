"""Rows of a dataset with their masks as squares, read ahead by processes of their own.

Contract: order is kept, and so much is read ahead as keeps the processes busy, not more. A row that cannot be read
becomes a rejected line instead of an error, so that whoever asked decides what that means.
This module does not know models, torch and ms-swift: its processes import little, start quickly and stay small.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from multiprocessing import connection
from typing import Any

import numpy as np

from .coco_masks import short
from .mask_rows import first_image_size, load_squares, row_masks
from .resumable_output import REJECTED

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
    """Rows of (number, line) in order, read ahead by `num_workers` processes."""
    tasks = iter(lambda: list(islice(lines, ROWS_PER_TASK)), [])
    if num_workers == 0:
        yield from (_read_task(task, side) for task in tasks)
        return
    # Spawned, not forked: a fork of a process with threads and a device may hang, and these start quickly.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, spawn, initializer=_follow_parent) as pool:
        ahead: deque = deque()
        try:
            for task in tasks:
                ahead.append(pool.submit(_read_task, task, side))
                if len(ahead) >= num_workers * TASKS_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a process that reads masks was killed, as happens when memory runs out: finished rows are kept, "
                "run again with a smaller num_workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """End a reading process with its parent, which it would wait for when that was killed, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent is the one to act on it
    parent = multiprocessing.parent_process()

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
