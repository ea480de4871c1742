"""The row files that a command names, checked before ms-swift loads a model."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from himtok_plugin.data.row_files import NO_ROWS, SUFFIXES, has_rows, iter_lines


def check_dataset_files(datasets: Iterable[Any], name: str) -> None:
    """Check that every row file among some datasets has rows.

    Args:
        datasets: values of `--dataset` or `--val_dataset`: files, possibly with `#NUMBER` of rows; others are ignored.
        name: of the option, for errors.
    Raises:
        ValueError: a file without rows, in UTF-16 or UTF-32, or of JSON under a name for plain text.
    """
    for dataset in datasets:
        if isinstance(dataset, str):
            whole = Path(dataset)
            path = whole if whole.is_file() else Path(dataset.rpartition("#")[0])
            if path.suffix in SUFFIXES and path.is_file() and not has_rows(path):
                raise ValueError(f"{name}: {path}: {NO_ROWS}")
            if path.suffix == ".txt" and path.is_file() and _has_json(path):
                # Each line would become a text to learn, and its images and masks would be lost.
                raise ValueError(
                    f"{name}: {path}: got rows in JSON, but ms-swift reads .txt as plain text, expected {SUFFIXES[1]}: "
                    "rename the file"
                )


def _has_json(path: Path) -> bool:
    first = next((line for line in iter_lines(path) if line.strip()), b"")
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False
