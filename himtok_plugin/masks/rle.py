"""COCO run-length encodings (RLE) to masks and back.

Contract: an encoding that does not describe a mask of its stated size is a ValueError that names field, value and what
was expected. Compressed runs are decoded here, because pycocotools writes past its buffers or returns noise if counts
and size disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from himtok_plugin.validation import abridged, is_integer

MAX_PIXELS = 1 << 28  # a few bytes of RLE can claim any size; PIL's limit for images is about the same

# The compressed form writes each run in characters of 6 bits above "0": 5 bits of the number, lowest first, and one bit
# that is set if more characters follow. The highest of the last 5 bits is the sign (pycocotools, common/maskApi.c).
_FIRST_CHARACTER = 48
_DATA_BITS = 5
_MORE_FOLLOW = 0x20
_SIGN = 0x10
_MAX_CHARACTERS = 8  # of one run; MAX_PIXELS needs fewer than 40 bits


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
    """Runs of a COCO encoding, background and foreground in turn, checked: int64 (n,). Arguments as `rle_to_mask`."""
    h, w = check_size(size)
    if isinstance(counts, str | bytes):
        runs = _decompress(counts)
    elif isinstance(counts, Sequence | np.ndarray) and all(is_integer(run) for run in counts):
        runs = np.array([int(run) for run in counts], dtype=object)  # arbitrary integers until they are checked
    else:
        raise ValueError(f"counts is {abridged(counts)}: expected a compressed string or a list of integers")
    total, shortest = (int(runs.sum()), int(runs.min())) if len(runs) else (0, 0)
    if shortest < 0 or total != h * w:
        raise ValueError(
            f"counts {abridged(counts)} has runs of at least {abridged(shortest)} pixels that add up to "
            f"{abridged(total)}: "
            f"expected runs of at least 0 pixels that add up to h * w = {h} * {w} = {h * w}"
        )
    return runs.astype(np.int64)


def mask_to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask; the inverse of `rle_to_mask`.

    Args:
        mask: bool (h, w).
    Returns:
        {"size": [h, w], "counts": compressed str}, ready for JSON.
    """
    counts = coco.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return {"size": list(mask.shape), "counts": counts.decode("ascii")}


def check_size(size: Sequence[int], name: str = "size") -> tuple[int, int]:
    """(h, w) as integers; ValueError if it is not two positive integers of at most MAX_PIXELS pixels."""
    values = list(size) if isinstance(size, Sequence | np.ndarray) and not isinstance(size, str | bytes) else []
    if len(values) != 2 or not all(is_integer(value) and value > 0 for value in values):
        raise ValueError(f"{name} is {abridged(size)}: expected two positive integers (h, w)")
    h, w = int(values[0]), int(values[1])
    if h * w > MAX_PIXELS:
        raise ValueError(f"{name} is {abridged(h)} x {abridged(w)} pixels: expected at most {MAX_PIXELS} in all")
    return h, w


def _decompress(counts: str | bytes) -> np.ndarray:
    """Runs of a compressed string. From the fourth on, the difference to the run two before is stored."""
    try:
        raw = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError as error:
        raise ValueError(f"counts is {abridged(counts)}: expected the characters of a compressed RLE") from error
    # Characters below "0" wrap around to high values.
    sextets = np.frombuffer(raw, dtype=np.uint8) - np.uint8(_FIRST_CHARACTER)
    ends = np.flatnonzero((sextets & _MORE_FOLLOW) == 0)
    if not ends.size or sextets.max() >= 2 * _MORE_FOLLOW or ends[-1] != len(sextets) - 1:
        raise ValueError(f"counts is {abridged(counts)}: expected a complete compressed RLE of characters '0' to 'o'")
    starts = np.empty_like(ends)
    starts[0] = 0
    np.add(ends[:-1], 1, out=starts[1:])
    lengths = ends - starts + 1
    longest = int(lengths.max())
    if longest > _MAX_CHARACTERS:
        raise ValueError(
            f"counts {abridged(counts)} has a run of {longest} characters: expected at most {_MAX_CHARACTERS}"
        )
    digits = sextets & (_MORE_FOLLOW - 1)
    values = digits[starts].astype(np.int64)
    for place in range(1, longest):
        longer = np.flatnonzero(lengths > place)
        values[longer] += digits[starts[longer] + place].astype(np.int64) << (_DATA_BITS * place)
    negative = np.flatnonzero(sextets[ends] & _SIGN)
    values[negative] -= np.int64(1) << (_DATA_BITS * lengths[negative])
    np.cumsum(values[1::2], out=values[1::2])
    np.cumsum(values[2::2], out=values[2::2])
    return values
