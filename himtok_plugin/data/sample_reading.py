"""Rows of a dataset with their masks as squares, read ahead by processes of their own.

Contract: order is kept, and so much is read ahead as keeps the processes busy, not more. A row that cannot be read
becomes a rejected line instead of an error, so that whoever asked decides what that means. Rejected is what training
would refuse: masks that cannot be read or have another size than the image, an image that is not there, placeholders
that are not as many as masks.
This module does not know models, torch and ms-swift: its processes import little, start quickly and stay small.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from himtok_plugin.jobs.resumable_output import REJECTED
from himtok_plugin.jobs.worker_pool import map_ordered
from himtok_plugin.mask_text import MASK_PLACEHOLDER, count_placeholders, reference_placeholder_to_mask

from .samples import (
    ANSWER_COLUMNS,
    CODES,
    PLAIN_COLUMNS,
    TEXT_KEYS,
    find_file,
    first_image_size,
    load_squares,
    parse_row,
    row_masks,
    row_messages,
)

ROWS_PER_TASK = 8  # read at a time by a process; a row may hold a hundred masks, 64 kB each
TASKS_AHEAD = 2  # per process: what it is reading, and what it goes on with
ANSWERING_ROLES = ("assistant", "gpt")
LONGEST_PATH = 2000  # ms-swift takes a longer text for an image in base64


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


def read_samples(lines: Iterator[tuple[int, bytes]], side: int, num_workers: int) -> Iterator[Task]:
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
        try:
            row = parse_row(line)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        masks = row_masks(row, name)
        _check_placeholders(row, len(masks or ()), name)
        if masks is None:
            return ReadRow(line)
        size = _image_size(row, name) if masks else None
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


def _check_placeholders(row: dict[str, Any], masks: int, name: str) -> None:
    """Refuse a row whose text speaks of masks, but not of as many as it has.

    Text without any placeholder is none of stage 1's business. A row without an answer may have more masks than
    placeholders: those that reinforcement learning expects the answer to have.
    """
    messages = row_messages(row)
    if messages is None:
        texts = [row.get(column) for column in PLAIN_COLUMNS]
        answered = any(row.get(column) for column in ANSWER_COLUMNS)
    else:
        texts, last = messages, messages[-1] if isinstance(messages, list) else None
        answered = isinstance(last, dict) and last.get("role", last.get("from")) in ANSWERING_ROLES
    placeholders = sum(map(_count_placeholders, _texts(texts)))
    if placeholders > masks or (0 < placeholders < masks and answered):
        raise ValueError(
            f"{name}: messages hold {placeholders} {MASK_PLACEHOLDER}, masks holds {masks}: expected one mask for each"
        )


def _count_placeholders(text: str) -> int:
    return count_placeholders(reference_placeholder_to_mask(text))


def _texts(value: Any) -> Iterator[str]:
    """All text of messages: strings, lists of them, and what dictionaries have as their content."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        for key in TEXT_KEYS:
            yield from _texts(value.get(key))


def _image_size(row: dict[str, Any], name: str) -> tuple[int, int] | None:
    """(h, w) of the row's first image; None where there is none, or it is no file: a URL, or the image itself.

    Raises:
        ValueError: a file that cannot be read, so that nothing tells which size the masks should have.
    """
    size = first_image_size(row)
    path = _image_path(row) if size is None else None
    if path is not None:
        reason = "no image that can be read" if os.path.exists(find_file(path)) else "no such file"
        raise ValueError(f"{name}: images[0] {path!r:.200}: {reason}, expected the image that the masks are of")
    return size


def _image_path(row: dict[str, Any]) -> str | None:
    """The first image's name if it is one of a file that can be looked for here, as ms-swift will."""
    images = row.get("images") or row.get("image")
    first = images[0] if isinstance(images, list) else images
    if isinstance(first, dict):
        first = None if first.get("bytes") else first.get("path")
    is_path = isinstance(first, str) and len(first) <= LONGEST_PATH and "://" not in first[:20]
    return first if is_path and not first.startswith(("data:", "~")) else None
