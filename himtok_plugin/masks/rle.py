"""COCO annotations: run-length encodings and polygons to bool (h, w), and masks to run-length encodings.

Purpose: the part of `masks.py` that knows COCO's formats.
Contract: every input is checked before any native code sees it; what does not describe a mask of its stated size is a
ValueError that names field, value and what was expected. Compressed runs are decoded here, not by pycocotools, which
writes past its buffers or returns noise where counts and size disagree.
This module does not know images, files or the model's square.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco
from himtok_plugin.validation import is_integer, abridged

MAX_PIXELS = 1 << 28  # a few bytes of RLE can claim any size; PIL refuses images of about this size as well

# The compressed form writes each run in characters of 6 bits above "0": 5 bits of the number, lowest first, and one
# that says whether more follow; the highest bit of the last 5 is the sign (pycocotools, common/maskApi.c).
_FIRST_CHARACTER = 48
_DATA_BITS = 5
_MORE = 0x20
_SIGN = 0x10
_MAX_GROUP = 8  # characters of one run; 40 bits are more than MAX_PIXELS can need


def rle_to_mask(counts: str | bytes | Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Decode a COCO run-length encoding; the inverse of `mask_to_rle`.

    Args:
        counts: runs of background and foreground in turn, column by column; compressed, or a list of integers.
        size: [h, w]; the runs must add up to h · w.
    Returns:
        bool (h, w).
    """
    h, w = check_size(size)
    runs = rle_runs(counts, size)
    foreground = np.arange(len(runs)) % 2 == 1
    return np.repeat(foreground, runs).reshape(w, h).T


def rle_runs(counts: str | bytes | Sequence[int], size: Sequence[int]) -> np.ndarray:
    """The checked runs of a COCO encoding, background and foreground in turn: int64 (n,). Arguments as above."""
    h, w = check_size(size)
    if isinstance(counts, str | bytes):
        runs = _decompress(counts)
    elif isinstance(counts, Sequence | np.ndarray) and all(is_integer(run) for run in counts):
        runs = np.array([int(run) for run in counts], dtype=object)  # of any size, until they are checked
    else:
        raise ValueError(f"counts is {abridged(counts)}: expected a compressed string or a list of integers")
    total, least = (int(runs.sum()), int(runs.min())) if len(runs) else (0, 0)
    if least < 0 or total != h * w:
        raise ValueError(
            f"counts {abridged(counts)} has runs from {least} adding up to {total}: "
            f"expected none below 0 and h * w = {h} * {w} = {h * w}"
        )
    return runs.astype(np.int64)


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a bool mask (h, w): {"size": [h, w], "counts": compressed str}, ready for JSON."""
    counts = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii")}




def check_size(size: Sequence[int], name: str = "size") -> tuple[int, int]:
    """(h, w) as integers; ValueError if it is not two positive integers of at most MAX_PIXELS pixels."""
    values = list(size) if isinstance(size, Sequence | np.ndarray) and not isinstance(size, str | bytes) else []
    if len(values) != 2 or not all(is_integer(value) and value > 0 for value in values):
        raise ValueError(f"{name} is {abridged(size)}: expected two positive integers (h, w)")
    h, w = int(values[0]), int(values[1])
    if h * w > MAX_PIXELS:
        raise ValueError(f"{name} is {h} x {w} pixels: expected at most {MAX_PIXELS} in all")
    return h, w








def _decompress(counts: str | bytes) -> np.ndarray:
    """Runs of a compressed string; those from the fourth on are stored as differences to the run two before."""
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise ValueError(f"counts is {abridged(counts)}: expected the characters of a compressed RLE") from error
    sextets = np.frombuffer(raw, dtype=np.uint8) - np.uint8(_FIRST_CHARACTER)  # lower characters wrap around, to above
    ends = np.flatnonzero((sextets & _MORE) == 0)
    if not ends.size or sextets.max() >= 2 * _MORE or ends[-1] != len(sextets) - 1:
        raise ValueError(f"counts is {abridged(counts)}: expected a compressed RLE, '0' to 'o', not cut off")
    starts = np.empty_like(ends)
    starts[0] = 0
    np.add(ends[:-1], 1, out=starts[1:])
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > _MAX_GROUP:
        raise ValueError(f"counts {abridged(counts)} has a run of {longest} characters: expected at most {_MAX_GROUP}")
    digits = sextets & (_MORE - 1)
    values = digits[starts].astype(np.int64)
    for place in range(1, longest):
        longer = np.flatnonzero(lengths > place)
        values[longer] += digits[starts[longer] + place].astype(np.int64) << (_DATA_BITS * place)
    negative = np.flatnonzero(sextets[ends] & _SIGN)
    values[negative] -= np.int64(1) << (_DATA_BITS * lengths[negative])
    np.cumsum(values[1::2], out=values[1::2])
    np.cumsum(values[2::2], out=values[2::2])
    return values


