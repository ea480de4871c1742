"""Reads one sample of a dataset, a row of a JSONL file: its text, its masks, and their squares.

Training and `himtok tokenize` read samples with these functions, so that codes made offline equal those of training.
Contract: a row is a dictionary as in the JSONL file; nothing here changes it. Importing this module imports no torch,
so that worker processes start quickly.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from himtok_plugin.files.images import ImageHeader, open_header
from himtok_plugin.files.text import convert_command
from himtok_plugin.masks import load_mask, to_square
from himtok_plugin.masks.rle import MAX_PIXELS
from himtok_plugin.validation import abridged, finite_numbers

CODES = "mask_codes"  # column of codes made offline
# Where ms-swift finds the text of a row: the first message column that is present, or else all of the others.
MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
HISTORY_COLUMN = "history"
QUESTION_COLUMNS = ("query", "prompt", "instruction", "input", "question", "problem")
ANSWER_COLUMNS = ("response", "answer", "output")
PLAIN_COLUMNS = (HISTORY_COLUMN, *QUESTION_COLUMNS, *ANSWER_COLUMNS)
TEXT_COLUMNS = (*MESSAGE_COLUMNS, *PLAIN_COLUMNS)
TEXT_KEYS = ("content", "value", "text")  # of a message, or of a part of one


def parse_row(line: bytes) -> dict[str, Any]:
    """Parse a row of a JSONL file.

    Raises:
        ValueError: not UTF-8, not JSON, or not an object.
    """
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"got byte 0x{line[error.start]:02x} at {error.start}, which is not UTF-8, expected a file in UTF-8: "
            f"convert it, for example with {convert_command('LATIN1', 'FILE')}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"is {abridged(row)}: expected a JSON object")
    return row


def row_messages(row: Mapping[str, Any]) -> Any:
    """The first message column that is not empty; None if the text is in the plain columns."""
    return next((row[column] for column in MESSAGE_COLUMNS if row.get(column)), None)


def row_masks(row: Mapping[str, Any], name: str = "row") -> list[Any] | None:
    """The mask sources of a row, for `masks.load_mask`: its `masks`, or `mask` in the format of the paper's code.

    Args:
        name: the row's name in errors.
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
    return [drop_nulls(mask) for mask in as_list(masks, f"{name}: masks")]


def as_list(value: Any, name: str) -> list[Any]:
    """A column's value as a list; a single path, RLE or dictionary of polygons becomes a list of one."""
    if isinstance(value, (str, dict)):
        return [value]
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{name}: got {abridged(value)}, expected a list")
    return list(value)


def check_boxes(objects: Any, name: str) -> None:
    """Check the numbers of the boxes and points in a row's column `objects`.

    Args:
        objects: in ms-swift's format; None for a row without.
        name: the row's name in errors.
    Raises:
        ValueError: a box is not two or four finite numbers, or is larger than any image.
    """
    boxes = objects.get("bbox") if isinstance(objects, dict) else None
    for i, box in enumerate(as_list(boxes or [], f"{name}: objects.bbox")):
        if not is_box(box):
            raise ValueError(
                f"{name}: objects.bbox[{i}]: got {abridged(box)}, expected two or four finite numbers within an image"
            )


def is_box(box: Any) -> bool:
    """Whether a value is a box or a point: four or two finite numbers, none larger than any image."""
    try:
        numbers = finite_numbers(box)
    except ValueError:
        return False
    return numbers.size in (2, 4) and bool(np.abs(numbers).max() <= MAX_PIXELS)


def drop_nulls(mask: Any) -> Any:
    """Remove the null values that Arrow adds to a dictionary: all dictionaries of a column get the same keys."""
    return {key: value for key, value in mask.items() if value is not None} if isinstance(mask, dict) else mask


def load_squares(
    sources: Mapping[int, Any], side: int, size: tuple[int, int] | None, name: str, frame_note: str = ""
) -> np.ndarray:
    """Load masks of a row as squares.

    Args:
        sources: index in `masks` -> source.
        side: side of the squares.
        size: (h, w) that every mask must have; None: any.
        name: the row's name in errors.
        frame_note: `ImageHeader.frame_note` of the image, the end of errors.

    Returns:
        uint8 (m, s, s), which takes a quarter of the memory of float32 on the way to the device; there `.float() / 255`
        gives the input of the mask tokenizer.
    Raises:
        ValueError: a mask that cannot be read, or of another size.
    """
    squares = np.zeros((len(sources), side, side), np.uint8)
    for square, (i, source) in zip(squares, sources.items(), strict=True):
        try:
            square[:] = np.rint(to_square(load_mask(find_file(source), size), side) * 255)
        except ValueError as error:
            raise ValueError(f"{name}: masks[{i}]: {error}{frame_note}") from error
    return squares


def find_file(source: Any) -> Any:
    """Resolve a path by ms-swift's rule for images: a relative path is searched in `ROOT_IMAGE_DIR`, if that is set."""
    root = os.environ.get("ROOT_IMAGE_DIR")
    if not isinstance(source, str) or not root or os.path.isabs(source) or os.path.exists(source):
        return source
    return os.path.join(root, source)


def first_image_size(row: Mapping[str, Any]) -> tuple[int, int] | None:
    """(h, w) of the row's first image as viewers show it; None as for `first_image_header`."""
    header = first_image_header(row)
    return None if header is None else header.size


def first_image_header(row: Mapping[str, Any]) -> ImageHeader | None:
    """The header of the row's first image.

    Returns:
        None for a row without images, and for an image that is not a readable file, such as a URL. Training, which
        needs the image itself, raises an error for those.
    """
    images = row.get("images") or row.get("image")
    first = images[0] if isinstance(images, list) else images
    path = first.get("path") if isinstance(first, dict) else first
    if not isinstance(path, str):
        return None
    try:
        return open_header(find_file(path))
    except Exception:  # PIL's readers raise nearly anything on damaged files
        return None
