"""Scores of a result file: predicted masks beside true ones, row by row, under a protocol.

Purpose: `himtok eval`, and whoever wants the same numbers of the same file.
Contract: reads JSON lines as `swift infer` writes them with this plugin, one row in memory at a time. A row's sample is
the union of its predicted `masks` against the union of its `target_masks`, without its `ignore` masks as the protocol
says; scores of single masks are held against the true mask that each stands for. The first of its `boxes` is held
against a single one in `target_boxes`. A row with neither truth asked for neither: it is counted, and not scored. What
cannot be read is a ValueError that begins with the row's number, never a skipped row.
This module does not know models and text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from himtok_plugin.data.samples import parse_row
from himtok_plugin.masks.rle import check_size
from himtok_plugin.masks.run_lengths import Runs
from himtok_plugin.masks.sources import Masks, MaskSource, load_mask
from himtok_plugin.metrics.boxes import BoxMetrics
from himtok_plugin.metrics.matching import matched_ious
from himtok_plugin.metrics.segmentation import (
    CalibrationMetrics,
    ClassMetrics,
    Overlap,
    SegmentationMetrics,
)
from himtok_plugin.validation import abridged

from .protocols import PROTOCOLS, Protocol

PREDICTED, TRUE, IGNORED = "masks", "target_masks", "ignore"  # keys of a result row
PREDICTED_BOXES, TRUE_BOXES = "boxes", "target_boxes"
CLASS = "category"
UNKNOWN_SIZE = (1, 1)  # a row without any mask has no size, and its two empty unions are equal at every size
PLAIN = PROTOCOLS["plain"]


def score_results(
    path: str | Path,
    root: str | Path | None = None,
    boundary: bool = True,
    on_progress: Callable[[int], None] | None = None,
    min_score: float = 0.0,
) -> dict[str, float | int | None]:
    """Score a result file.

    A row without a predicted mask although there is a target is a missing answer: scored as an empty mask and counted.
    Where nothing is to be found, an answer without a mask is right. Where no mask was asked for, nothing is scored.

    Args:
        path: JSON lines; each row has `masks`, a list of COCO RLEs, and where masks were asked for `target_masks`, a
            list of paths, RLEs or polygons as in the dataset; perhaps `ignore`, masks of the same kinds, and
            `category`; `target_boxes` and `boxes`, x1, y1, x2, y2 in pixels, where a box is true.
        root: folder that relative paths in `target_masks` start from; by default the working directory, as in ms-swift.
        boundary: also compute `boundary_F` and `boundary_IoU`, the slowest of the numbers.
        on_progress: called after each row with the bytes read so far.
        min_score: predicted masks with a lower `score` do not count, as if inference had had `--min_score`.
    Returns:
        What `ResultScores.compute` returns.
    Raises:
        ValueError: a row that cannot be scored, or a file without rows that can.
        OSError: the file cannot be read.
    """
    scores = ResultScores(PLAIN, boundary, min_score, root)
    for number, row in read_results(path, on_progress):
        scores.add(row, f"{path}: row {number}")
    scores.check(path)
    return scores.compute()


class ResultScores:
    """Streaming scores of result rows; those of several processes merge.

    Args:
        protocol: its rules.
        boundary, min_score, root: see `score_results`.
    """

    def __init__(
        self,
        protocol: Protocol = PLAIN,
        boundary: bool = True,
        min_score: float = 0.0,
        root: str | Path | None = None,
    ) -> None:
        check_min_score(min_score)
        self.protocol = protocol
        self.min_score = min_score
        self.root = root
        self.metrics = SegmentationMetrics(boundary)
        self.classes = ClassMetrics()
        self.calibration = CalibrationMetrics()
        self.boxes = BoxMetrics()
        self._rows = 0
        self._not_scored = 0
        self._predicted = 0  # masks, those below `min_score` among them
        self._with_score = 0

    def __len__(self) -> int:
        """Number of rows, those that are not scored among them."""
        return self._rows

    def add(self, row: dict[str, Any], name: str = "row") -> float | None:
        """Score a row and return the IoU of its masks, None where none were asked for; errors begin with `name`."""
        try:
            boxed = self._add_box(row)
            iou = self._add_masks(row) if asks_for_masks(row) else None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        self._rows += 1
        self._not_scored += iou is None and not boxed
        return iou

    def _add_box(self, row: dict[str, Any]) -> bool:
        true, found = _boxes(row, TRUE_BOXES), _boxes(row, PREDICTED_BOXES)
        if true is None or len(true) != 1:  # of several, nothing says which answers which
            return False
        if found is None:
            raise ValueError(f"has {TRUE_BOXES!r} and no {PREDICTED_BOXES!r}: expected what was predicted as well")
        self.boxes.update(found[0] if found else None, true[0])
        return True

    def _add_masks(self, row: dict[str, Any]) -> float:
        self.protocol.check_question(get_question(row), row.get("expressions"))
        scores = _scores(row)
        self._predicted += len(scores)
        self._with_score += sum(score is not None for score in scores)
        row = drop_low_scores(row, self.min_score)
        if self.metrics.boundary:
            masks = load_result_masks(row, self.root)
            runs = ResultRuns(*([Runs.from_mask(mask) for mask in each] for each in masks), size=masks[0].size)
            pair = self.protocol.pair(masks[0].union(), masks[1].union(), masks[2].union() if masks[2] else None)
            self.metrics.update(*pair, missing=runs.missing)
            overlap = Overlap.of(*pair)
        else:
            runs = load_result_runs(row, self.root)
            overlap = runs.overlap(self.protocol)
            self.metrics.update_overlap(overlap, runs.missing)
        if isinstance(row.get(CLASS), str):
            self.classes.update(row[CLASS], overlap)
        if any(score is not None for score in scores):
            single = len(runs.predicted) == len(runs.true) == 1  # then the row's counts are those of its masks
            ious = [overlap.iou if overlap.target else 0.0] if single else runs.matched_ious(self.protocol)
            for score, iou in zip(_scores(row), ious, strict=True):
                if score is not None:
                    self.calibration.update(score, iou)
        return overlap.iou

    def merge(self, other: ResultScores) -> ResultScores:
        """Add the rows of another accumulator to this one, and return this one."""
        for name in ("metrics", "classes", "calibration", "boxes"):
            getattr(self, name).merge(getattr(other, name))
        for name in ("_rows", "_not_scored", "_predicted", "_with_score"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def check(self, path: str | Path) -> None:
        """ValueError for a file of which no row can be scored, or to which `min_score` means nothing."""
        if not self._rows:
            raise ValueError(f"{path}: holds no rows, expected JSON lines written by `swift infer`")
        if self._not_scored == self._rows:
            raise ValueError(
                f"{path}: none of {self._rows} rows has {TRUE!r}, or one of {TRUE_BOXES!r}: expected a result of "
                "`swift infer --plugin himtok` on rows that ask for masks or a box"
            )
        if self.min_score and self._predicted and not self._with_score:
            raise ValueError(f"min_score: got {self.min_score}, expected 0: no mask of {path} has a score")

    def compute(self) -> dict[str, float | int | None]:
        """All numbers so far, each only where there are rows of its kind.

        What `SegmentationMetrics.compute` returns; `mIoU` and `classes` of rows with a `category`; what
        `CalibrationMetrics.compute` returns, of masks with a score; of `BoxMetrics.compute` the accuracies and
        `box_IoU`, its counts as `box_samples` and `box_missing`; and `not_scored`, the rows that asked for neither
        masks nor a box.
        """
        scores: dict[str, float | int | None] = {}
        if len(self.metrics):
            scores |= self.metrics.compute(self.protocol.precision_over_targets)
        if len(self.classes):
            scores |= self.classes.compute()
        if len(self.calibration):
            scores |= self.calibration.compute()
        if len(self.boxes):
            counts = ("samples", "missing")
            scores |= {f"box_{name}" if name in counts else name: n for name, n in self.boxes.compute().items()}
        return {**scores, "not_scored": self._not_scored}


def asks_for_masks(row: dict[str, Any]) -> bool:
    """Whether the masks of a result row are to be scored: only then it has true ones, or an empty list of them.

    Raises:
        ValueError: neither true nor predicted masks, nor a box: no result.
    """
    if row.get(TRUE) is None and PREDICTED not in row and row.get(TRUE_BOXES) is None:
        raise ValueError(f"has no {PREDICTED!r}: expected a result of `swift infer --plugin himtok`")
    return row.get(TRUE) is not None


def get_mask_score(mask: Any, i: int, key: str = "score") -> float | None:
    """The score of a row's i-th predicted mask; None where it has none.

    Raises:
        ValueError: it is no number in [0, 1].
    """
    score = mask.get(key) if isinstance(mask, dict) else None
    number = isinstance(score, int | float) and not isinstance(score, bool)
    if score is not None and not (number and 0 <= score <= 1):
        raise ValueError(f"{PREDICTED}[{i}].{key} is {abridged(score)}: expected a number in [0, 1]")
    return score


def check_min_score(min_score: float) -> None:
    """ValueError for what no score can be compared with, NaN among it."""
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score: got {min_score!r}, expected a number in [0, 1]")


def drop_low_scores(row: dict[str, Any], min_score: float) -> dict[str, Any]:
    """The row without predicted masks of a lower score; masks without a score stay.

    Raises:
        ValueError: a score that is no number in [0, 1].
    """
    masks = row.get(PREDICTED)
    if not min_score or not isinstance(masks, list):
        return row
    pairs = zip(masks, _scores(row), strict=True)
    return {**row, PREDICTED: [mask for mask, score in pairs if score is None or score >= min_score]}


def _scores(row: dict[str, Any]) -> list[float | None]:
    masks = row.get(PREDICTED)
    return [get_mask_score(mask, i) for i, mask in enumerate(masks)] if isinstance(masks, list) else []


def get_question(row: dict[str, Any]) -> str:
    """What a row's last user turn asks; empty for a row without messages."""
    messages = row.get("messages")
    asked = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"] if messages else []
    content = asked[-1].get("content") if asked else ""
    return content if isinstance(content, str) else ""


class ResultRuns(NamedTuple):
    """The masks of a result row, of which nothing but areas is wanted: predicted, true, to be ignored; size (h, w)."""

    predicted: list[Runs]
    true: list[Runs]
    ignore: list[Runs]
    size: tuple[int, int]

    @property
    def missing(self) -> bool:
        """Whether there is no answer although there is a target."""
        return not self.predicted and any(mask.area for mask in self.true)

    def overlap(self, protocol: Protocol = PLAIN) -> Overlap:
        """Counts of the union of the predicted masks against that of the true ones."""
        return protocol.overlap(self.predicted, self.true, self.ignore, self.size)

    def matched_ious(self, protocol: Protocol = PLAIN) -> list[float]:
        """IoU of each predicted mask with the true one that it stands for, by the rules of the protocol."""

        def iou(one: Runs, other: Runs) -> float:
            overlap = protocol.overlap([one], [other], self.ignore, self.size)
            return overlap.iou if overlap.target else 0.0

        return matched_ious(self.predicted, self.true, iou)


def load_result_runs(row: dict[str, Any], root: str | Path | None = None) -> ResultRuns:
    """The masks of a result row, without making pixels of those that are RLEs.

    Args:
        row: with `masks` and `target_masks`, see `score_results`.
        root: see `score_results`.
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
    return ResultRuns(runs[PREDICTED], runs[TRUE], runs[IGNORED], size)


def load_result_masks(row: dict[str, Any], root: str | Path | None = None) -> tuple[Masks, Masks, Masks]:
    """The same in pixels: predicted masks, true ones and those to be ignored. Arguments and errors as above."""
    sources = _checked_sources(row)
    size = check_size(sources[PREDICTED][0].get("size"), f"{PREDICTED}[0].size") if sources[PREDICTED] else None
    true = _masks(sources[TRUE], TRUE, size, root)
    size = true.size if true else size
    ignore = _masks(sources[IGNORED], IGNORED, size, root)
    size = ignore.size if ignore else size or UNKNOWN_SIZE
    return _masks(sources[PREDICTED], PREDICTED, size, None), true or Masks([], size), ignore


def read_results(
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
                    row = parse_row(line)
                except ValueError as error:
                    raise ValueError(f"{path}: row {number}: {error}") from error
                yield number, row
            if on_progress is not None:
                on_progress(consumed)


def _checked_sources(row: dict[str, Any]) -> dict[str, list[MaskSource]]:
    found = {key: _sources(row, key) for key in (PREDICTED, TRUE)}
    for i, source in enumerate(found[PREDICTED]):
        if not isinstance(source, dict):
            raise ValueError(f"{PREDICTED}[{i}] is {abridged(source)}: expected a COCO RLE")
    return {**found, IGNORED: _sources(row, IGNORED) if row.get(IGNORED) is not None else []}


def _sources(row: dict[str, Any], key: str) -> list[MaskSource]:
    if key not in row:
        raise ValueError(f"has no {key!r}: expected a result of `swift infer --plugin himtok` on rows with masks")
    value = [row[key]] if key == IGNORED and isinstance(row[key], str | dict) else row[key]
    if not isinstance(value, list):
        raise ValueError(f"{key} is {abridged(value)}: expected a list of masks")
    return value


def _boxes(row: dict[str, Any], key: str) -> list[list[float]] | None:
    boxes = row.get(key)
    if boxes is None:
        return None
    for i, box in enumerate(boxes if isinstance(boxes, list) else [boxes]):
        numbers = isinstance(box, list) and [v for v in box if isinstance(v, int | float) and not isinstance(v, bool)]
        if not isinstance(boxes, list) or not numbers or len(box) != 4 or len(numbers) != 4:
            raise ValueError(f"{key}[{i}] is {abridged(box)}: expected [x1, y1, x2, y2]")
    return boxes


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
