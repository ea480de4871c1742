"""Row files before ms-swift loads them: empty ones are refused, and those that it cannot read are rewritten or named.

Contract: only local JSON files are looked at, one at a time, when ms-swift loads them. options/dataset_checks.py has
refused the empty ones that a command names before a model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from himtok_plugin.data.row_files import NO_ROWS, SUFFIXES, has_rows, is_plain, iter_lines, iter_rows
from himtok_plugin.data.samples import parse_row
from himtok_plugin.files.atomic_file import atomic_write
from himtok_plugin.validation import abridged

_INT64 = 1 << 63
_DEEPEST = 50  # lists and dictionaries in each other; Arrow's own limit differs between versions


def make_readable(path: str, cache: str) -> str:
    """The path of a file with the same rows that ms-swift can read, which knows no byte order marks.

    Args:
        path: the file.
        cache: folder of rewritten files, which later runs find again.
    Raises:
        ValueError: no rows, UTF-16 or UTF-32.
    """
    source = Path(path)
    if source.suffix not in SUFFIXES:
        return path
    if not has_rows(source):
        raise ValueError(f"{path}: {NO_ROWS}")
    if is_plain(source):
        return path
    status = source.stat()
    identity = f"{source.absolute()} {status.st_size} {status.st_mtime_ns}"
    rewritten = Path(cache, "himtok_rows", blake2b(identity.encode(), digest_size=16).hexdigest() + ".jsonl")
    if not rewritten.is_file():
        os.makedirs(rewritten.parent, exist_ok=True)
        with atomic_write(rewritten) as file:
            for line in iter_lines(source):
                if line.strip():
                    file.write(line.rstrip(b"\r\n") + b"\n")
    return str(rewritten)


def name_unreadable_row(path: str) -> None:
    """Find the row because of which a file could not be loaded.

    Raises:
        ValueError: a row is not JSON, or has a value that Arrow cannot hold; names file and row.
    """
    if Path(path).suffix not in SUFFIXES:
        return
    for number, line, _, _ in iter_rows(Path(path)):
        if line.strip():
            try:
                check_arrow_value(parse_row(line))
            except ValueError as error:
                raise ValueError(f"{path}: row {number}: {error}") from error


def check_arrow_value(value: Any) -> None:
    """Raise ValueError for a JSON value that Arrow cannot hold: an integer of more than 64 bits, or deep nesting."""
    waiting = [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError(f"got values nested more than {_DEEPEST} deep, expected masks and messages")
        if isinstance(value, dict | list):
            waiting += [(each, depth + 1) for each in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, int) and not -_INT64 <= value < _INT64:
            raise ValueError(f"got {abridged(value)}, expected numbers of at most 64 bits")


def check_not_empty(load: Callable[[], Any], name: str) -> Any:
    """Load a dataset, and refuse it if ms-swift's preprocessing leaves no row.

    Args:
        load: returns a dataset of the `datasets` package; of a streamed one the first row is read.
        name: of the dataset, for the error.
    Raises:
        ValueError: it has no rows.
    """
    try:
        dataset = load()
        is_empty = not len(dataset) if hasattr(dataset, "__len__") else next(iter(dataset), None) is None
    except StopIteration:  # ms-swift reads the first rows of a stream as well
        is_empty = True
    if is_empty:
        raise ValueError(
            f"{name}: got no row that can be used, expected at least one: see the warnings above, or find the faults "
            "with `himtok prepare check`"
        )
    return dataset


def explain_first_row(dataset: Any) -> str:
    """Why the first row of ms-swift's `LazyLLMDataset` cannot be encoded, in one line; empty if it can."""
    try:
        dataset.encode_func(dataset.dataset[0], return_length=True)
    except Exception as error:  # of the template, of PIL or of the file system
        return " ".join(str(error).split()) or type(error).__name__
    return ""
