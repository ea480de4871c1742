"""Files that a command may replace: those of the kind that it writes.

A command with an output file replaces an earlier one without asking. Swapped arguments, or a name that is taken, must
not cost a user an annotation file or a README: a file of another kind is refused.

Contract: imports the standard library only. Only the beginning of an existing file is read, except for reports.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NoReturn

LONGEST_ROW = 2**24  # bytes of a first row that are read
TURN_COLUMNS = ("messages", "conversations")  # of rows with text, in ms-swift's format and in the authors'
ROW_COLUMNS = (*TURN_COLUMNS, "masks")  # rows for stage 1 have masks only


def check_replaceable_rows(path: Path) -> None:
    """Check that a file is missing, empty, or has rows of samples, one JSON object a line.

    Raises:
        ValueError: it is something else.
    """
    if not _has_content(path, "rows of samples"):
        return
    with open(path, "rb") as file:
        line = file.readline(LONGEST_ROW)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not (isinstance(row, dict) and any(name in row for name in ROW_COLUMNS)):
        _refuse(path, "rows of samples")


def check_replaceable_page(path: Path) -> None:
    """Check that a file is missing, empty, or an HTML page.

    Raises:
        ValueError: it is something else.
    """
    if not _has_content(path, "an HTML page"):
        return
    with open(path, "rb") as file:
        start = file.read(1024).lstrip().lower()
    if not start.startswith((b"<!doctype html", b"<html", b"<!--")):
        _refuse(path, "an HTML page")


def check_replaceable_json(path: Path, *names: str) -> None:
    """Check that a file is missing, empty, or one JSON value: no row, and an object with these names if there are any.

    Raises:
        ValueError: it is something else.
    """
    kind = "a JSON object" + (f" with {' and '.join(names)}" if names else " of results")
    if not _has_content(path, kind):
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        content = None
    is_list = isinstance(content, list) and not names
    if not is_list and not (isinstance(content, dict) and all(name in content for name in names)):
        _refuse(path, kind)
    if any(name in content for name in TURN_COLUMNS):
        _refuse(path, kind)


def _has_content(path: Path, kind: str) -> bool:
    if path.is_dir():
        raise ValueError(f"{path}: got a folder, expected a file to write, {kind}")
    return path.is_file() and path.stat().st_size > 0


def _refuse(path: Path, kind: str) -> NoReturn:
    raise ValueError(
        f"{path}: got a file that is there already and is not {kind}, expected a new file, or one of the kind that "
        "this command writes; move or delete it yourself"
    )
