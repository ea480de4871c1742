"""`--resume_result`."""

from __future__ import annotations

import os
from typing import Any

from himtok_plugin.evaluation.results import read_results
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn


def select_rows_without_result(rows: Any, result_path: str | None) -> Any:
    """The rows of a dataset that have no result yet, by their datasets' names and their numbers.

    Args:
        rows: ms-swift's preprocessed dataset, perhaps of several files.
        result_path: the result file, which may not be there yet.
    Raises:
        ValueError: a result or a row without a number, as rows without masks are, or a result of another dataset.
    """
    if not result_path or not os.path.isfile(result_path):
        return rows
    keys = []
    for i in range(len(rows)):
        masks = rows[i].get("masks")
        key = None if masks is None else MaskColumn.parse(masks).key
        if key is None:
            raise ValueError(f"--resume_result: row {i + 1} of the dataset: got no masks, expected rows with masks")
        keys.append(key)
    asked, done = {dataset for dataset, _ in keys}, set()
    for line, row in read_results(result_path):
        name = f"--resume_result: {result_path}: row {line}"
        if not isinstance(row.get("row"), int):
            raise ValueError(f"{name} has no number, expected results of rows with masks")
        dataset = row.get("dataset")
        if dataset is None and len(asked) == 1:  # an older result, or one of a server
            (dataset,) = asked
        if dataset not in asked:
            # A file of another name may be the same one, whose rows would all be answered twice.
            raise ValueError(f"{name}: dataset: got {dataset!r}, expected one of {sorted(map(str, asked))}")
        done.add((dataset, row["row"]))
    return rows.select([i for i, key in enumerate(keys) if key not in done])
