"""Which row of which dataset a result belongs to, and results that a file has twice.

Contract: a result's key is its dataset and its number in it, as `swift infer --plugin himtok` writes them. It appends
to a file that exists, so a second run gives each row a second result: `check_rows_once` refuses that, and
`find_repeated_lines` says which lines to leave out. Results without a number (of other programs) have no key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .results import read_results

Key = tuple[str | None, int]
REFUSE, FIRST, LAST = "refuse", "first", "last"
ADVICE = (
    "`swift infer` appends to a file that exists. `himtok eval --duplicates last` scores the last result of each row, "
    "`--duplicates first` the first one"
)
DUPLICATES = (REFUSE, FIRST, LAST)  # what is done about several results of a row


def get_result_key(row: Mapping[str, Any]) -> Key | None:
    """Return dataset and number of a result; None without a number. Tables make numbers 1.0 and "1" of 1."""
    number, dataset = row.get("row"), row.get("dataset")
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    elif isinstance(number, str) and number.isascii() and number.isdecimal() and len(number) < 20:
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool):
        return None
    return (dataset if isinstance(dataset, str) else None), number


def check_rows_once(path: str | Path, keys: Iterable[tuple[int, Key]]) -> None:
    """Check that no row has two results.

    Args:
        path: the result file.
        keys: (line, key) of its results, in any order.
    Raises:
        ValueError: a row has two results.
    """
    lines: dict[Key, int] = {}
    listed = sorted(keys, key=lambda each: each[0])
    single = _is_single_dataset(key for _, key in listed)
    for line, (dataset, number) in listed:
        key = (None if single else dataset), number
        if key in lines:
            of = "" if dataset is None else f" of {dataset}"
            raise ValueError(
                f"{path}: row number {number}{of} occurs more than once, on lines {lines[key]} and {line}: expected "
                f"one result per row. {ADVICE}"
            )
        lines[key] = line


def _is_single_dataset(keys: Iterable[Key]) -> bool:
    """Whether results are of one dataset, though some do not name it: those of older versions."""
    return len({dataset for dataset, _ in keys} - {None}) < 2


def find_repeated_lines(path: str | Path, duplicates: str) -> set[int]:
    """Find the lines of a result file that are left out because their row has another result.

    Args:
        path: the result file.
        duplicates: `first` or `last`, the result of a row to keep; `refuse`: nothing is left out.
    Returns:
        Numbers of lines, counted from 1.
    Raises:
        ValueError: `duplicates` is something else, or a line is not a JSON object.
    """
    if duplicates not in DUPLICATES:
        raise ValueError(f"--duplicates: got {duplicates!r}, expected one of {', '.join(DUPLICATES)}")
    repeated: set[int] = set()
    kept: dict[Key, int] = {}
    results = read_results(path) if duplicates != REFUSE else ()
    listed = [(line, key) for line, row in results if (key := get_result_key(row)) is not None]
    single = _is_single_dataset(key for _, key in listed)
    for line, (dataset, number) in listed:
        key = (None if single else dataset), number
        if key in kept:
            repeated.add(line if duplicates == FIRST else kept[key])
        if key not in kept or duplicates == LAST:
            kept[key] = line
    return repeated


def name_datasets(datasets: Iterable[str | None]) -> dict[str | None, str | None]:
    """Name the datasets of a result file so that they are recognised in results of another folder or machine.

    Returns:
        dataset -> the shortest end of its path that no other one has: `testA.jsonl`. None if there is only one.
    """
    found = sorted({dataset for dataset in datasets}, key=str)
    if len(found) == 1:
        return {found[0]: None}
    parts = {dataset: PurePosixPath((dataset or "").replace("\\", "/")).parts for dataset in found}
    names: dict[str | None, str | None] = {}
    for dataset, own in parts.items():
        others = [other for name, other in parts.items() if name != dataset]
        length = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        names[dataset] = "/".join(own[-length:]) if own else None
    return names
