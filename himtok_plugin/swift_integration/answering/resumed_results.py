"""`--resume_result`: which samples of a dataset have no result yet.

Contract: `select_rows_without_result` reads the result file, and `drop_unfinished_results` then removes from it what is
answered again: results with an error, and a last line that was cut off when the earlier run was killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from swift.utils import get_logger

from himtok_plugin.data.samples import parse_row
from himtok_plugin.evaluation.results import ERROR
from himtok_plugin.files.atomic_file import atomic_write
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn

logger = get_logger()


def warn_about_appending(result_path: str | None) -> None:
    """Warn if a run without `--resume_result` is going to append to results."""
    if result_path and os.path.isfile(result_path) and os.path.getsize(result_path):
        logger.warning(
            f"result_path: {result_path} has results already, and new ones are appended. `himtok eval` refuses a file "
            "with two results of a row: delete the file first, or continue it with --resume_result true"
        )


def select_rows_without_result(rows: Any, result_path: str | None) -> Any:
    """Select the samples that have no result yet, or one with an error. Dataset and row number identify a sample.

    Args:
        rows: ms-swift's preprocessed dataset, of one or several files.
        result_path: the result file, which need not exist.
    Raises:
        ValueError: a sample has no number, or a result has no number or another dataset.
    """
    if not result_path or not os.path.isfile(result_path):
        return rows
    keys = []
    for i in range(len(rows)):
        masks = rows[i].get("masks")
        key = None if masks is None else MaskColumn.parse(masks).key
        if key is None:
            raise ValueError(f"--resume_result: row {i + 1} of the dataset: got no number, expected rows of a file")
        keys.append(key)
    datasets, done = {dataset for dataset, _ in keys}, set()
    for line, _, row in _read_finished_results(result_path):
        name = f"--resume_result: {result_path}: row {line}"
        if not isinstance(row.get("row"), int):
            raise ValueError(f"{name} has no number, expected results of rows of a file")
        dataset = row.get("dataset")
        if dataset is None and len(datasets) == 1:  # results of older versions or of a server
            (dataset,) = datasets
        if dataset not in datasets:
            # The dataset can be the same under another name; then every sample would get a second result.
            raise ValueError(f"{name}: dataset: got {dataset!r}, expected one of {sorted(map(str, datasets))}")
        done.add((dataset, row["row"]))
    return rows.select([i for i, key in enumerate(keys) if key not in done])


def drop_unfinished_results(result_path: str | None) -> None:
    """Remove from a result file what `select_rows_without_result` does not count as a result; one process calls this.

    The new file replaces the old one at once, so that other processes can read either.
    """
    if not result_path or not os.path.isfile(result_path):
        return
    kept = b"".join(text + b"\n" for _, text, _ in _read_finished_results(result_path))
    if len(kept) != os.path.getsize(result_path):
        with atomic_write(Path(result_path)) as file:
            file.write(kept)


def _read_finished_results(path: str) -> Iterator[tuple[int, bytes, dict[str, Any]]]:
    """Yield number, text and content of each line with an answer.

    Raises:
        ValueError: a line is not a JSON object, except an incomplete last one.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = parse_row(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    logger.warning(f"--resume_result: {path}: row {number} is incomplete and is answered again")
                    continue
                raise ValueError(f"{path}: row {number}: {error}") from error
            if row.get(ERROR) is None:
                yield number, line.rstrip(b"\r\n"), row
