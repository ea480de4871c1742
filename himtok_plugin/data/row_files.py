"""Files of rows: JSON lines, one JSON list of objects, or one object, as ms-swift trains on them.

All commands that read rows or results use these functions, so that they accept the same files. Contract: a row has the
number of its line, or of its place in the list, counted from 1. Files are read piece by piece, in UTF-8 with or without
a byte order mark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from himtok_plugin.files.text import UTF8_MARK, skip_mark, strip_mark

from .byte_ranges import iter_elements

SUFFIXES = (".json", ".jsonl")
NO_ROWS = "has no rows, expected JSON lines or a JSON list of rows"
_SPACE = b" \t\r\n"
_INNER_MARK = b"\n" + UTF8_MARK  # where files were joined
_LARGEST_OBJECT = 1 << 26  # bytes of a file that is one row


class RowLine(NamedTuple):
    """A row as one line of JSON.

    Attributes:
        number: of the line or of the element, counted from 1.
        line: JSON with a line end; blank for a blank line of JSON lines.
        begin, end: its range in the file, in bytes, for `read_row`.
    """

    number: int
    line: bytes
    begin: int
    end: int


def iter_rows(path: Path) -> Iterator[RowLine]:
    """Yield the rows of a file, blank lines included.

    Raises:
        ValueError: UTF-16 or UTF-32, or a JSON list that is damaged. The lines themselves are not parsed.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        begin = skip_mark(file, str(path))
        if _first_character(file) == b"[":
            number = 0
            for _, first, length, _ in iter_elements(path):
                if length:  # 0 for an empty list
                    number += 1
                    yield RowLine(number, read_row(file, first, first + length), first, first + length)
            return
        file.seek(begin)
        if _is_one_object(file):
            end = file.seek(0, 2)
            yield RowLine(1, read_row(file, begin, end), begin, end)
            return
        file.seek(begin)
        for number, line in enumerate(file, 1):
            yield RowLine(number, strip_mark(line), begin, begin + len(line))
            begin += len(line)


def iter_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of `iter_rows`."""
    for row in iter_rows(path):
        yield row.line


def has_rows(path: Path) -> bool:
    """Whether a file has at least one row; see `iter_rows` for errors."""
    return any(line.strip() for line in iter_lines(path))


def read_row(file: BinaryIO, begin: int, end: int) -> bytes:
    """Read a row again, as one line with a line end: JSON has line breaks between its tokens only."""
    file.seek(begin)
    row = strip_mark(file.read(end - begin)).strip()
    return row.replace(b"\r", b" ").replace(b"\n", b" ") + b"\n"


def is_plain(path: Path) -> bool:
    """Whether other programs read the file as `iter_rows` does.

    They take no byte order marks, a list only at the first byte, and with `datasets` 4.8.0 an object only on one line.

    Raises:
        ValueError: UTF-16 or UTF-32.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        if skip_mark(file, str(path)):
            return False
        first = _first_character(file)
        if first == b"[":
            file.seek(0)
            return file.read(1) == b"["
        file.seek(0)
        if _is_one_object(file):
            return False
        file.seek(0)
        before = b""
        while chunk := file.read(1 << 20):
            if _INNER_MARK in before + chunk:
                return False
            before = chunk[-len(_INNER_MARK) :]
        return True


def _first_character(file: BinaryIO) -> bytes:
    """The next byte that is not white space; moves the file."""
    while chunk := file.read(1 << 16):
        if text := chunk.lstrip(_SPACE):
            return text[:1]
    return b""


def _is_one_object(file: BinaryIO) -> bool:
    """Whether the rest of the file is one object over several lines."""
    first = next((line for line in file if line.strip()), b"")
    if not first.startswith(b"{") or _is_json(first):
        return False
    begin = file.tell() - len(first)
    rest = file.read(_LARGEST_OBJECT + 1)
    file.seek(begin)
    return len(rest) <= _LARGEST_OBJECT and _is_json(first + rest)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
