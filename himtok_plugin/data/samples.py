"""A dataset row: where its text stands, which masks it has and where they lie, what the mask tokenizer sees of them.

Purpose: one reading of a row for training (`swift_integration/dataset.py`) and for `himtok tokenize`, so that
codes made beforehand are those that the training step would have made.
Contract: rows are plain dictionaries as they stand in a JSON lines file; nothing here changes one.
This module does not know codes, text, torch and ms-swift; it is light enough for a process that only reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.masks.sources import load_mask, to_square
from himtok_plugin.validation import abridged

CODES = "mask_codes"  # column of codes made offline
# Where ms-swift finds a row's text: the first of the message columns that is there, else all of the others.
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
HISTORY_COLUMN = "history"
QUESTION_COLUMNS = ("query", "prompt", "instruction", "input", "question", "problem")
ANSWER_COLUMNS = ("response", "answer", "output")
PLAIN_COLUMNS = (HISTORY_COLUMN, *QUESTION_COLUMNS, *ANSWER_COLUMNS)
TEXT_COLUMNS = (*MESSAGE_COLUMNS, *PLAIN_COLUMNS)
TEXT_KEYS = ("content", "value", "text")  # of a message, or of a part of one


def parse_row(line: bytes) -> dict[str, Any]:
    """A row of a JSON lines file.

    Raises:
        ValueError: no UTF-8, no JSON, or no object.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"is {abridged(row)}: expected a JSON object")
    return row


def row_messages(row: Mapping[str, Any]) -> Any:
    """The first of the message columns that says something; None where the plain columns are the row's text."""
    return next((row[column] for column in MESSAGE_COLUMNS if row.get(column)), None)


def row_masks(row: Mapping[str, Any], name: str = "row") -> list[Any] | None:
    """The row's mask sources, as `masks.load_mask` takes them: its `masks`, or the reference's `mask`.

    Args:
        row: a row of a dataset.
        name: how errors call it.
    Returns:
        One source per mask; None for a row that has neither column.
    Raises:
        ValueError: neither a list nor a single source.
    """
    masks = row.get("masks")
    if masks is None:
        masks = row.get("mask")
    if masks is None:
        return None
    return [without_nulls(mask) for mask in as_list(masks, f"{name}: masks")]


def as_list(value: Any, name: str) -> list[Any]:
    """A column's value as a list; a single path, RLE or dictionary of polygons is a list of one."""
    if isinstance(value, (str, dict)):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}: got {value!r:.80}, expected a list")
    return list(value)


def without_nulls(mask: Any) -> Any:
    """Arrow gives every struct of a column the keys of all of them."""
    return {key: value for key, value in mask.items() if value is not None} if isinstance(mask, dict) else mask


def load_squares(sources: Mapping[int, Any], side: int, size: tuple[int, int] | None, name: str) -> np.ndarray:
    """Read masks of a row.

    Args:
        sources: index in `masks` -> source.
        side: of the squares.
        size: (h, w) that every mask must have, None: any.
        name: how errors call the row.

    Returns:
        uint8 (m, s, s): squares of 8-bit pictures, a quarter of their float32 size on the way to the device, where
        `.float() / 255` makes them what the mask tokenizer takes.
    """
    squares = np.zeros((len(sources), side, side), np.uint8)
    for square, (i, source) in zip(squares, sources.items(), strict=True):
        try:
            square[:] = np.rint(to_square(load_mask(find_file(source), size), side) * 255)
        except ValueError as error:
            raise ValueError(f"{name}: masks[{i}]: {error}") from error
    return squares


def find_file(source: Any) -> Any:
    """A path by ms-swift's rule for images: a relative one is looked for in `ROOT_IMAGE_DIR`, if that is set."""
    root = os.environ.get("ROOT_IMAGE_DIR")
    if not isinstance(source, str) or not root or os.path.isabs(source) or os.path.exists(source):
        return source
    return os.path.join(root, source)


def first_image_size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """(h, w) of the row's first image, read off its header.

    Returns:
        None for a row without images, and for an image that cannot be opened as a file here: a URL, or one that lies
        on another machine. Training, which needs the image itself, names those.
    """
    images = row.get("images") or row.get("image")
    first = images[0] if isinstance(images, list) else images
    path = first.get("path") if isinstance(first, dict) else first
    if not isinstance(path, str):
        return None
    try:
        with Image.open(find_file(path)) as image:
            return image.height, image.width
    except Exception:  # PIL's readers raise nearly anything on damaged files
        return None
