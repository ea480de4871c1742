"""Scores of a result file: predicted masks beside true ones, row by row.

Purpose: `himtok eval`, and whoever wants the same numbers of the same file.
Contract: reads JSON lines as `swift infer` writes them with this plugin, one row in memory at a time. A row's sample is
the union of its predicted `masks` against the union of its `target_masks`. What cannot be read is a ValueError that
begins with the row's number, never a skipped row.
This module does not know models, text and benchmarks' protocols.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .coco_masks import check_size, short
from .masks import Masks, MaskSource
from .metrics import SegmentationMetrics

PREDICTED, TRUE = "masks", "target_masks"  # keys of a result row
UNKNOWN_SIZE = (1, 1)  # a row without any mask has no size, and its two empty unions are equal at every size


def score_rows(
    path: str | Path,
    root: str | Path | None = None,
    boundary: bool = True,
    on_progress: Callable[[int], None] | None = None,
    min_score: float = 0.0,
) -> dict[str, float | int | None]:
    """Score a result file.

    A row without a predicted mask although there is a target is a missing answer: scored as an empty mask and counted.
    Where nothing is to be found, an answer without a mask is right.

    Args:
        path: JSON lines; each row has `masks`, a list of COCO RLEs, and `target_masks`, a list of paths, RLEs or
            polygons as in the dataset.
        root: folder that relative paths in `target_masks` start from; by default the working directory, as in ms-swift.
        boundary: also compute `boundary_F`, the slowest of the numbers.
        on_progress: called after each row with the bytes read so far.
        min_score: predicted masks with a lower `score` do not count, as if inference had had `--min_score`.
    Returns:
        What `SegmentationMetrics.compute` returns.
    Raises:
        ValueError: a row that cannot be scored, or a file without rows.
        OSError: the file cannot be read.
    """
    metrics = SegmentationMetrics(boundary=boundary)
    for number, row in read_rows(path, on_progress):
        try:
            metrics.update(*prediction_and_target(with_min_score(row, min_score), root))
        except ValueError as error:
            raise ValueError(f"{path}: row {number}: {error}") from error
    if not len(metrics):
        raise ValueError(f"{path}: holds no rows, expected JSON lines written by `swift infer`")
    return metrics.compute()


def with_min_score(row: dict[str, Any], min_score: float) -> dict[str, Any]:
    """The row without predicted masks of a lower score; masks without a score stay."""
    masks = row.get(PREDICTED)
    if not min_score or not isinstance(masks, list):
        return row
    kept = [m for m in masks if not isinstance(m, dict) or m.get("score") is None or m["score"] >= min_score]
    return {**row, PREDICTED: kept}


def prediction_and_target(row: dict[str, Any], root: str | Path | None = None) -> tuple[np.ndarray | None, np.ndarray]:
    """What a result row says beside what is true.

    Args:
        row: with `masks` and `target_masks`, see `score_rows`.
        root: see `score_rows`.
    Returns:
        bool (h, w) each; the prediction is None for a missing answer.
    Raises:
        ValueError: a row that cannot be scored.
    """
    predicted, true = predicted_and_target_masks(row, root)
    union = true.union()
    return (None if not predicted and union.any() else predicted.union()), union


def predicted_and_target_masks(row: dict[str, Any], root: str | Path | None = None) -> tuple[Masks, Masks]:
    """The predicted masks of a result row and the true ones, all of one size. Arguments and errors as above."""
    predicted, true = _sources(row, PREDICTED), _sources(row, TRUE)
    for i, source in enumerate(predicted):
        if not isinstance(source, dict):
            raise ValueError(f"{PREDICTED}[{i}] is {short(source)}: expected a COCO RLE")
    size = check_size(predicted[0].get("size"), f"{PREDICTED}[0].size") if predicted else None
    target = _masks(true, TRUE, size, root)
    size = target.size if true else size or UNKNOWN_SIZE
    return _masks(predicted, PREDICTED, size, None), target


def read_rows(
    path: str | Path, on_progress: Callable[[int], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a result file with their numbers, counted from 1 like lines; blank lines are passed over.

    Args:
        path: JSON lines.
        on_progress: called after each row with the bytes read so far.
    Raises:
        ValueError: a line that is no JSON object.
        OSError: the file cannot be read.
    """
    consumed = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            consumed += len(line)
            if line.strip():
                try:
                    row = _read_row(line)
                except ValueError as error:
                    raise ValueError(f"{path}: row {number}: {error}") from error
                yield number, row
            if on_progress is not None:
                on_progress(consumed)


def _read_row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"is {short(row)}: expected a JSON object")
    return row


def _sources(row: dict[str, Any], key: str) -> list[MaskSource]:
    if key not in row:
        raise ValueError(f"has no {key!r}: expected a result of `swift infer --plugin himtok` on rows with masks")
    if not isinstance(row[key], list):
        raise ValueError(f"{key} is {short(row[key])}: expected a list of masks")
    return row[key]


def _masks(sources: list[MaskSource], key: str, size: tuple[int, int] | None, root: str | Path | None) -> Masks:
    if not sources:
        return Masks([], size or UNKNOWN_SIZE)
    try:
        return Masks.load(sources, size, root)
    except ValueError as error:  # begins with "masks[i]", whichever of the two lists it is about
        raise ValueError(key + str(error).removeprefix("masks")) from error
