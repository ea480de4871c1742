"""Reads large JSON files element by element, and reads single elements again by their byte range.

An annotation file of any size takes the memory of one element, plus 24 bytes for each element that is indexed.
Contract: `iter_elements` parses a JSON document whose top level is an object or a list and yields the elements of every
list there; a `RangeIndex` stores (group, begin, length) of some of them; `read_json_at` reads one again. Positions are
in bytes. Broken JSON is a ValueError with the file and the byte.
"""

from __future__ import annotations

import json
import os
import stat
from array import array
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from himtok_plugin.files.text import EncodingError, decode_text, skip_mark

from .annotation_values import normal_id
from .skip_log import NOT_JSON, NOT_UTF8, TOO_LARGE, UNREADABLE_FILE, AnnotationError

CHUNK = 1 << 20  # bytes read at a time; elements may be longer
MAX_ELEMENT = 1 << 30
_SPACE = " \t\r\n"
_DECODER = json.JSONDecoder()

Range = tuple[int, int]  # begin, length


def iter_elements(path: Path) -> Iterator[tuple[str | None, int, int, Any]]:
    """Yield (key, begin, length, value) of each element of the lists at the top level, and of every other value there.

    The key is None for the elements of a top-level list; an empty list yields one item of length 0. Text is decoded as
    latin-1, so that characters are bytes: for anything but ASCII, read the element again with `read_json_at`.

    Raises:
        ValueError: not JSON, or truncated; names the byte. Not UTF-8, but UTF-16 or UTF-32.
    """
    with open(path, "rb") as file:
        yield from _Walker(file, path).document()


class _Walker:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._text, self._at = "", 0
        self._before = skip_mark(file, str(path))  # bytes in front of the text
        self._ended = False

    def document(self) -> Iterator[tuple[str | None, int, int, Any]]:
        first = self._take("{[", "an object or a list")
        if first == "[":
            yield from self._elements(None)
        else:
            yield from self._members()
        if self._peek():
            self._fail("nothing more")

    def _members(self) -> Iterator[tuple[str | None, int, int, Any]]:
        if self._peek() == "}":
            self._at += 1
            return
        while True:
            _, _, key = self._value()
            if not isinstance(key, str):
                self._fail("a key")
            self._take(":", "a colon")
            if self._peek() == "[":
                self._at += 1
                yield from self._elements(key)
            else:
                yield (key, *self._value())
            if self._take(",}", "a comma or the object's end") == "}":
                return

    def _elements(self, key: str | None) -> Iterator[tuple[str | None, int, int, Any]]:
        if self._peek() == "]":
            self._at += 1
            yield key, self._before + self._at, 0, None
            return
        while True:
            yield (key, *self._value())
            if self._take(",]", "a comma or the list's end") == "]":
                return

    def _value(self) -> tuple[int, int, Any]:
        self._peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except (ValueError, RecursionError):
                if not self._more():
                    self._fail("a value")
                continue
            # A number may continue: "12" is followed by ".5e-3".
            rest = self._text[end : end + 3]
            if len(rest) < 3 and not rest.strip(".eE+-") and self._more():
                continue
            begin, self._at = self._at, end
            return self._before + begin, end - begin, value

    def _take(self, characters: str, expected: str) -> str:
        found = self._peek()
        if not found or found not in characters:
            self._fail(expected)
        self._at += 1
        return found

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read more; twice as much each time within one element, so that it is not parsed too often."""
        kept = len(self._text) - self._at
        if self._ended or kept > MAX_ELEMENT:
            return False
        data = self._file.read(max(CHUNK, kept))
        self._ended = not data
        self._before += self._at
        self._text, self._at = self._text[self._at :] + data.decode("latin-1"), 0
        return bool(data)

    def _fail(self, expected: str) -> None:
        at = self._before + self._at
        end = " (the end of the file: is it cut off?)" if self._ended and self._at >= len(self._text.rstrip()) else ""
        cut = "" if end or not self._ended else ", the file may be cut off"
        raise ValueError(f"{self._path}: is not JSON at byte {at}{end}: expected {expected}{cut}")


class RangeIndex:
    """Byte ranges of elements by group, such as the annotations of each image. Takes 24 bytes per element."""

    def __init__(self) -> None:
        self._groups, self._begins, self._lengths = array("q"), array("q"), array("q")
        self._sorted: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def add(self, group: Any, begin: int, length: int) -> None:
        self._groups.append(id_to_int(group))
        self._begins.append(begin)
        self._lengths.append(length)

    def drop(self, indices: np.ndarray) -> None:
        """Remove the elements at some positions (in the order they were added)."""
        if not len(indices):
            return
        for name in ("_groups", "_begins", "_lengths"):
            kept = np.delete(np.array(getattr(self, name), dtype=np.int64), indices)
            setattr(self, name, array("q", kept.tobytes()))
        self._sorted = None

    def __len__(self) -> int:
        return len(self._groups)

    def groups(self) -> np.ndarray:
        """int64 (n,): the group of each element (see `id_to_int`), in the order they were added."""
        return np.frombuffer(self._groups, dtype=np.int64) if self._groups else np.zeros(0, np.int64)

    def range(self, index: int) -> Range:
        """The range of the index-th element."""
        return self._begins[index], self._lengths[index]

    def in_group(self, group: int) -> list[Range]:
        """The ranges of a group's elements, in the order they were added."""
        if self._sorted is None:
            groups = self.groups()
            order = np.argsort(groups, kind="stable")
            begins, lengths = (np.frombuffer(a, dtype=np.int64) for a in (self._begins, self._lengths))
            self._sorted = (groups[order], begins[order], lengths[order]) if len(groups) else (groups,) * 3
        groups, begins, lengths = self._sorted
        first, last = (np.searchsorted(groups, group, side) for side in ("left", "right"))
        return list(zip(begins[first:last].tolist(), lengths[first:last].tolist(), strict=True))


def id_to_int(id: Any) -> int:
    """An integer for an id, equal for all its forms (`normal_id`): numbers stay as they are, other ids are hashed."""
    own = normal_id(id)
    if isinstance(own, int) and -(1 << 60) < own < 1 << 60:
        return own
    digest = blake2b(repr(id if own is None else own).encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return (1 << 61) + int.from_bytes(digest)


def find_repeated(ids: array) -> np.ndarray:
    """Sorted positions of the ids that occurred before."""
    values = np.frombuffer(ids, dtype=np.int64) if ids else np.zeros(0, np.int64)
    order = np.argsort(values, kind="stable")
    again = order[1:][values[order][1:] == values[order][:-1]]
    return np.sort(again)


def read_json_at(path: Path, where: Range) -> Any:
    """Read the element at a byte range.

    Raises:
        AnnotationError: not UTF-8, or not JSON.
    """
    status = os.stat(path)
    file = _open_cached(path, status.st_ino, status.st_size, status.st_mtime_ns)
    file.seek(where[0])
    try:
        return parse_json(file.read(where[1]), str(path))
    except AnnotationError as error:
        raise AnnotationError(error.reason, f"at byte {where[0]} of {error.detail}") from error


def parse_json_file(path: Path) -> Any:
    """Parse a whole file of JSON.

    Raises:
        AnnotationError: no regular file, in no encoding of Unicode, not JSON, or larger than MAX_ELEMENT bytes.
        OSError: it cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise AnnotationError(UNREADABLE_FILE, f"{path}: is no regular file")
    if status.st_size > MAX_ELEMENT:
        raise AnnotationError(TOO_LARGE, f"{path}: got {status.st_size} bytes, expected at most {MAX_ELEMENT}")
    return parse_json(path.read_bytes(), str(path))


def parse_json(data: bytes, name: str) -> Any:
    """Parse JSON in any encoding of Unicode, with or without a byte order mark.

    Args:
        name: of the file, for errors.
    Raises:
        AnnotationError: in another encoding, or not JSON.
    """
    try:
        return json.loads(decode_text(data, name))
    except EncodingError as error:
        raise AnnotationError(NOT_UTF8, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(NOT_JSON, f"{name}: {error}") from error


@lru_cache(maxsize=8)
def _open_cached(path: Path, *version: int) -> BinaryIO:
    return open(path, "rb")  # noqa: SIM115 stays open for the next elements
