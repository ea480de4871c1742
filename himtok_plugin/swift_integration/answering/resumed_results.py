"""`--resume_result`: which samples of a dataset have no result yet."""

from __future__ import annotations

import os
from typing import Any

from himtok_plugin.evaluation.results import read_results
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn


def select_rows_without_result(rows: Any, result_path: str | None) -> Any:
    """Select the samples that have no result yet. Dataset and row number identify a sample.

    Args:
        rows: ms-swift's preprocessed dataset, of one or several files.
        result_path: the result file, which need not exist.
    Raises:
        ValueError: a sample has no masks and hence no number, or a result has no number or another dataset.
    """
    if not result_path or not os.path.isfile(result_path):
        return rows
    keys = []
    for i in range(len(rows)):
        masks = rows[i].get("masks")
        key = None if masks is None else MaskColumn.parse(masks).key
        if key is None:
            raise ValueError(f"--resume_result: row {i + 1} of the dataset: got no masks, expected samples with masks")
        keys.append(key)
    datasets, done = {dataset for dataset, _ in keys}, set()
    for line, row in read_results(result_path):
        name = f"--resume_result: {result_path}: row {line}"
        if not isinstance(row.get("row"), int):
            raise ValueError(f"{name} has no number, expected results of samples with masks")
        dataset = row.get("dataset")
        if dataset is None and len(datasets) == 1:  # results of older versions or of a server
            (dataset,) = datasets
        if dataset not in datasets:
            # The dataset can be the same under another name; then every sample would get a second result.
            raise ValueError(f"{name}: dataset: got {dataset!r}, expected one of {sorted(map(str, datasets))}")
        done.add((dataset, row["row"]))
    return rows.select([i for i, key in enumerate(keys) if key not in done])
