"""Reads the samples of a JSONL file and their masks as squares, in worker processes.

Contract: the order of the samples is kept, and only a few of them are read ahead. A sample that cannot be read becomes
a rejected line instead of an error, so that the caller decides what to do. Rejected is what training would refuse:
masks that cannot be read or do not have the size of the image, missing images, a wrong number of placeholders. Workers
import neither torch nor ms-swift, so that they start quickly and stay small.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np

from himtok_plugin.files.images import ImageHeader
from himtok_plugin.jobs.resumable_output import REJECTED
from himtok_plugin.jobs.worker_pool import map_ordered
from himtok_plugin.mask_text import MASK_PLACEHOLDER, count_placeholders, reference_placeholder_to_mask

from .samples import (
    ANSWER_COLUMNS,
    CODES,
    PLAIN_COLUMNS,
    TEXT_KEYS,
    check_boxes,
    find_file,
    first_image_header,
    load_squares,
    parse_row,
    row_masks,
    row_messages,
)

SAMPLES_PER_BATCH = 8  # of a worker; a sample may have a hundred masks of 64 kB each
BATCHES_AHEAD = 2  # per worker: the batch that it reads, and the next one
ANSWERING_ROLES = ("assistant", "gpt")
LONGEST_PATH = 2000  # ms-swift decodes longer strings as base64 images


@dataclass(frozen=True)
class ReadSample:
    """A sample that was read.

    Attributes:
        line: its line of the output, without `mask_codes`.
        squares: fingerprints of its masks' squares; None if the line gets no `mask_codes`.
    """

    line: bytes
    squares: list[bytes] | None = None


ReadBatch = tuple[list[ReadSample], dict[bytes, np.ndarray]]  # samples, fingerprint -> square, uint8 (s, s)


def read_samples(lines: Iterator[tuple[int, bytes]], side: int, num_workers: int) -> Generator[ReadBatch, None, None]:
    """Read samples in batches.

    Args:
        lines: (line number, line).
        side: side of the squares.
        num_workers: worker processes; 0: this process reads.
    Raises:
        ChildProcessError: a worker was killed.
    """
    batches = iter(lambda: list(islice(lines, SAMPLES_PER_BATCH)), [])
    yield from map_ordered(partial(_read_batch, side=side), batches, num_workers, BATCHES_AHEAD)


def _read_batch(lines: Iterable[tuple[int, bytes]], side: int) -> ReadBatch:
    squares: dict[bytes, np.ndarray] = {}
    return [_read_sample(number, line.strip(), side, squares) for number, line in lines], squares


def _read_sample(number: int, line: bytes, side: int, squares: dict[bytes, np.ndarray]) -> ReadSample:
    """Read one sample and add its squares to `squares`."""
    name = f"row {number}"
    try:
        if not line:
            return ReadSample(line)
        try:
            row = parse_row(line)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        masks = row_masks(row, name)
        check_boxes(row.get("objects"), name)
        _check_placeholders(row, len(masks or ()), name)
        if masks is None:
            return ReadSample(line)
        header = _required_image_header(row, name) if masks else None
        size, note = (None, "") if header is None else (header.size, header.frame_note)
        loaded = load_squares(dict(enumerate(masks)), side, size, name, note)
    except ValueError as error:
        text = line.decode("utf-8", "backslashreplace")
        reject = json.dumps({"row": number, "error": str(error), "line": text}, ensure_ascii=False)
        return ReadSample(REJECTED + reject.encode("utf-8", "backslashreplace"))
    if CODES in row:  # they may be another mask tokenizer's
        del row[CODES]
        line = json.dumps(row).encode()
    digests = [blake2b(square.tobytes(), digest_size=16).digest() for square in loaded]
    squares.update(zip(digests, loaded, strict=True))
    return ReadSample(line, digests)


def _check_placeholders(row: dict[str, Any], masks: int, name: str) -> None:
    """Check that there are as many placeholders as masks.

    Text without any placeholder is accepted, because stage 1 does not use it. A sample without an answer may have more
    masks than placeholders: for reinforcement learning, the rest are the masks of the expected answer.

    Raises:
        ValueError: the numbers differ.
    """
    messages = row_messages(row)
    if messages is None:
        texts = [row.get(column) for column in PLAIN_COLUMNS]
        answered = any(row.get(column) for column in ANSWER_COLUMNS)
    else:
        texts, last = messages, messages[-1] if isinstance(messages, list) else None
        answered = isinstance(last, dict) and last.get("role", last.get("from")) in ANSWERING_ROLES
    placeholders = sum(map(_count_placeholders, _iter_texts(texts)))
    if placeholders > masks or (0 < placeholders < masks and answered):
        raise ValueError(
            f"{name}: messages hold {placeholders} {MASK_PLACEHOLDER}, masks holds {masks}: expected one mask for each"
        )


def _count_placeholders(text: str) -> int:
    return count_placeholders(reference_placeholder_to_mask(text))


def _iter_texts(value: Any) -> Iterator[str]:
    """All strings in messages, which may be strings, lists or dictionaries."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _iter_texts(part)
    elif isinstance(value, dict):
        for key in TEXT_KEYS:
            yield from _iter_texts(value.get(key))


def _required_image_header(row: dict[str, Any], name: str) -> ImageHeader | None:
    """The header of the row's first image; None without an image file: no image, a URL, or an image in base64.

    Raises:
        ValueError: an image file that is missing or cannot be read, so that the size of the masks cannot be checked; or
            an image that ms-swift would show white.
    """
    header = first_image_header(row)
    if header is not None:
        header.check_depth(f"{name}: images[0]")
    path = _first_image_path(row) if header is None else None
    if path is not None:
        reason = "not a readable image" if os.path.exists(find_file(path)) else "no such file"
        raise ValueError(f"{name}: images[0] {path!r:.200}: {reason}, expected the image of the masks")
    return header


def _first_image_path(row: dict[str, Any]) -> str | None:
    """The first image's path; None if ms-swift would not read it as a file."""
    images = row.get("images") or row.get("image")
    first = images[0] if isinstance(images, list) else images
    if isinstance(first, dict):
        first = None if first.get("bytes") else first.get("path")
    if not isinstance(first, str) or len(first) > LONGEST_PATH or "://" in first[:20]:
        return None
    return None if first.startswith(("data:", "~")) else first
