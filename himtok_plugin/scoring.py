"""Scores of a result file: predicted masks beside true ones, row by row, under a protocol.

Purpose: `himtok eval`, and whoever wants the same numbers of the same file.
Contract: reads JSON lines as `swift infer` writes them with this plugin, one row in memory at a time. A row's sample is
the union of its predicted `masks` against the union of its `target_masks`, without its `ignore` masks as the protocol
says. What cannot be read is a ValueError that begins with the row's number, never a skipped row.
This module does not know models and text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .coco_masks import check_size, short
from .masks import Masks, MaskSource, load_mask
from .metrics import ClassMetrics, Overlap, SegmentationMetrics
from .protocols import PROTOCOLS, Protocol
from .run_lengths import Runs

PREDICTED, TRUE, IGNORED = "masks", "target_masks", "ignore"  # keys of a result row
CLASS = "category"
UNKNOWN_SIZE = (1, 1)  # a row without any mask has no size, and its two empty unions are equal at every size
PLAIN = PROTOCOLS["plain"]


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
            polygons as in the dataset; perhaps `ignore`, masks of the same kinds, and `category`.
        root: folder that relative paths in `target_masks` start from; by default the working directory, as in ms-swift.
        boundary: also compute `boundary_F` and `boundary_IoU`, the slowest of the numbers.
        on_progress: called after each row with the bytes read so far.
        min_score: predicted masks with a lower `score` do not count, as if inference had had `--min_score`.
    Returns:
        What `SegmentationMetrics.compute` returns, and `mIoU` where rows have a `category`.
    Raises:
        ValueError: a row that cannot be scored, or a file without rows.
        OSError: the file cannot be read.
    """
    scores = RowScores(PLAIN, boundary, min_score, root)
    for number, row in read_rows(path, on_progress):
        scores.add(row, f"{path}: row {number}")
    if not len(scores):
        raise ValueError(f"{path}: holds no rows, expected JSON lines written by `swift infer`")
    return scores.compute()


class RowScores:
    """Streaming scores of result rows; those of several processes merge.

    Args:
        protocol: its rules.
        boundary, min_score, root: see `score_rows`.
    """

    def __init__(
        self,
        protocol: Protocol = PLAIN,
        boundary: bool = True,
        min_score: float = 0.0,
        root: str | Path | None = None,
    ) -> None:
        self.protocol = protocol
        self.min_score = min_score
        self.root = root
        self.metrics = SegmentationMetrics(boundary)
        self.classes = ClassMetrics()

    def __len__(self) -> int:
        return len(self.metrics)

    def add(self, row: dict[str, Any], name: str = "row") -> float:
        """Score a row and return its IoU; errors begin with `name`."""
        try:
            self.protocol.check_question(question_of(row), row.get("expressions"))
            row = with_min_score(row, self.min_score)
            if self.metrics.boundary:
                overlap = self._add_pixels(row)
            else:
                overlap, missing = overlap_of_row(row, self.protocol, self.root)
                self.metrics.update_overlap(overlap, missing)
            if isinstance(row.get(CLASS), str):
                self.classes.update(row[CLASS], overlap)
            return overlap.iou
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def _add_pixels(self, row: dict[str, Any]) -> Overlap:
        predicted, true, ignore = masks_of_row(row, self.root)
        union = true.union()
        missing = not predicted and bool(union.any())
        pair = self.protocol.pair(predicted.union(), union, ignore.union() if ignore else None)
        self.metrics.update(*pair, missing=missing)
        return Overlap.of(*pair)

    def merge(self, other: RowScores) -> RowScores:
        """Add the rows of another accumulator to this one, and return this one."""
        self.metrics.merge(other.metrics)
        self.classes.merge(other.classes)
        return self

    def compute(self) -> dict[str, float | int | None]:
        """What `SegmentationMetrics.compute` returns, and `mIoU` and `classes` where rows have a `category`."""
        scores = self.metrics.compute(self.protocol.precision_over_targets)
        return {**scores, **self.classes.compute()} if len(self.classes) else scores


def with_min_score(row: dict[str, Any], min_score: float) -> dict[str, Any]:
    """The row without predicted masks of a lower score; masks without a score stay."""
    masks = row.get(PREDICTED)
    if not min_score or not isinstance(masks, list):
        return row
    kept = [m for m in masks if not isinstance(m, dict) or m.get("score") is None or m["score"] >= min_score]
    return {**row, PREDICTED: kept}


def question_of(row: dict[str, Any]) -> str:
    """What a row's last user turn asks; empty for a row without messages."""
    messages = row.get("messages")
    asked = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"] if messages else []
    content = asked[-1].get("content") if asked else ""
    return content if isinstance(content, str) else ""


def overlap_of_row(
    row: dict[str, Any], protocol: Protocol = PLAIN, root: str | Path | None = None
) -> tuple[Overlap, bool]:
    """Pixel counts of a result row, without making pixels where all of its masks are RLEs.

    Args:
        row: with `masks` and `target_masks`, see `score_rows`.
        protocol: its rules.
        root: see `score_rows`.
    Returns:
        The counts, and whether there is no answer although there is a target.
    Raises:
        ValueError: a row that cannot be scored.
    """
    sources = _checked_sources(row)
    runs: dict[str, list[Runs]] = {key: _runs(masks, key, root) for key, masks in sources.items()}
    everything = [*runs[TRUE], *runs[PREDICTED], *runs[IGNORED]]
    size = everything[0].size if everything else UNKNOWN_SIZE
    for key, masks in runs.items():
        for i, mask in enumerate(masks):
            try:
                mask.check_size(size)
            except ValueError as error:
                raise ValueError(f"{key}[{i}]: {error}") from error
    missing = not runs[PREDICTED] and any(mask.area for mask in runs[TRUE])
    return protocol.overlap(runs[PREDICTED], runs[TRUE], runs[IGNORED], size), missing


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
    return masks_of_row(row, root)[:2]


def masks_of_row(row: dict[str, Any], root: str | Path | None = None) -> tuple[Masks, Masks, Masks]:
    """The predicted masks of a result row, the true ones and those to be ignored. Arguments and errors as above."""
    sources = _checked_sources(row)
    size = check_size(sources[PREDICTED][0].get("size"), f"{PREDICTED}[0].size") if sources[PREDICTED] else None
    true = _masks(sources[TRUE], TRUE, size, root)
    size = true.size if true else size
    ignore = _masks(sources[IGNORED], IGNORED, size, root)
    size = ignore.size if ignore else size or UNKNOWN_SIZE
    return _masks(sources[PREDICTED], PREDICTED, size, None), true or Masks([], size), ignore


def read_rows(
    path: str | Path, on_progress: Callable[[int], None] | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a result file with their numbers, counted from 1 like lines; blank lines are passed over.

    Args:
        path: JSON lines.
        on_progress: called after each row with the bytes read so far.
        share: (rank, count) of this process, which gets every count-th line; the others are not even parsed.
    Raises:
        ValueError: a line that is no JSON object.
        OSError: the file cannot be read.
    """
    consumed = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            consumed += len(line)
            if number % share[1] == share[0] and line.strip():
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


def _checked_sources(row: dict[str, Any]) -> dict[str, list[MaskSource]]:
    found = {key: _sources(row, key) for key in (PREDICTED, TRUE)}
    for i, source in enumerate(found[PREDICTED]):
        if not isinstance(source, dict):
            raise ValueError(f"{PREDICTED}[{i}] is {short(source)}: expected a COCO RLE")
    return {**found, IGNORED: _sources(row, IGNORED) if row.get(IGNORED) is not None else []}


def _sources(row: dict[str, Any], key: str) -> list[MaskSource]:
    if key not in row:
        raise ValueError(f"has no {key!r}: expected a result of `swift infer --plugin himtok` on rows with masks")
    value = [row[key]] if key == IGNORED and isinstance(row[key], str | dict) else row[key]
    if not isinstance(value, list):
        raise ValueError(f"{key} is {short(value)}: expected a list of masks")
    return value


def _runs(sources: list[MaskSource], key: str, root: str | Path | None) -> list[Runs]:
    runs = []
    for i, source in enumerate(sources):
        try:
            if isinstance(source, dict) and "counts" in source:
                check_size(source.get("size"), f"{key}[{i}].size")
                runs.append(Runs.from_rle(source))
            else:
                runs.append(Runs.from_mask(load_mask(_under(source, root))))
        except ValueError as error:
            message = str(error)
            raise ValueError(message if message.startswith(f"{key}[") else f"{key}[{i}]: {message}") from error
    return runs


def _under(source: MaskSource, root: str | Path | None) -> MaskSource:
    return Path(root, source) if root is not None and isinstance(source, str | Path) else source


def _masks(sources: list[MaskSource], key: str, size: tuple[int, int] | None, root: str | Path | None) -> Masks:
    if not sources:
        return Masks([], size or UNKNOWN_SIZE)
    try:
        return Masks.load(sources, size, root)
    except ValueError as error:  # begins with "masks[i]", whichever of the lists it is about
        raise ValueError(key + str(error).removeprefix("masks")) from error
