"""Files that a command may replace: those of the kind that it writes.

A command with an output file replaces an earlier one without asking. Swapped arguments, or a name that is taken, must
not cost a user an annotation file or a README: a file of another kind is refused.

Contract: imports the standard library only. Only the beginning of an existing file is read, except for reports.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

LONGEST_ROW = 2**24  # bytes of a first row that are read
TURN_COLUMNS = ("messages", "conversations")  # of rows with text, in ms-swift's format and in the authors'
ROW_COLUMNS = (*TURN_COLUMNS, "masks")  # rows for stage 1 have masks only


def check_replaceable_rows(path: Path) -> None:
    """Check that a file is missing, empty, or has rows of samples, one JSON object a line.

    Raises:
        ValueError: it is something else.
    """
    _check_kind(path, "rows of samples", _begins_with_row)


def check_replaceable_page(path: Path) -> None:
    """Check that a file is missing, empty, or an HTML page.

    Raises:
        ValueError: it is something else.
    """
    _check_kind(path, "an HTML page", _begins_as_page)


def check_replaceable_json(path: Path, *names: str) -> None:
    """Check that a file is missing, empty, or one JSON value: no row, and an object with these names if there are any.

    Raises:
        ValueError: it is something else.
    """
    kind = "a JSON object" + (f" with {' and '.join(names)}" if names else " of results")
    _check_kind(path, kind, lambda path: _is_result(path, names))


def _check_kind(path: Path, kind: str, is_of_kind: Callable[[Path], bool]) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: got a folder, expected a file to write, {kind}")
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        is_replaceable = is_of_kind(path)
    except (ValueError, RecursionError):  # of JSON and UTF-8
        is_replaceable = False
    if not is_replaceable:
        raise ValueError(
            f"{path}: got a file that is there already and is not {kind}, expected a new file, or one of the kind that "
            "this command writes; move or delete it yourself"
        )


def _begins_with_row(path: Path) -> bool:
    with open(path, "rb") as file:
        row = json.loads(file.readline(LONGEST_ROW))
    return isinstance(row, dict) and any(name in row for name in ROW_COLUMNS)


def _begins_as_page(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1024).lstrip().lower().startswith((b"<!doctype html", b"<html", b"<!--"))


def _is_result(path: Path, names: Sequence[str]) -> bool:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, list):
        return not names
    if not isinstance(content, dict) or any(name in content for name in TURN_COLUMNS):
        return False
    return all(name in content for name in names)
