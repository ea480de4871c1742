"""The row files that a command names, checked before ms-swift loads a model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from himtok_plugin.data.row_files import NO_ROWS, SUFFIXES, has_rows


def check_dataset_files(datasets: Iterable[Any], name: str) -> None:
    """Check that every row file among some datasets has rows.

    Args:
        datasets: values of `--dataset` or `--val_dataset`: files, possibly with `#NUMBER` of rows; others are ignored.
        name: of the option, for errors.
    Raises:
        ValueError: a file without rows, or in UTF-16 or UTF-32.
    """
    for dataset in datasets:
        if isinstance(dataset, str):
            whole = Path(dataset)
            path = whole if whole.is_file() else Path(dataset.rpartition("#")[0])
            if path.suffix in SUFFIXES and path.is_file() and not has_rows(path):
                raise ValueError(f"{name}: {path}: {NO_ROWS}")
