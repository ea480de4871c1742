"""The average training mask of each phrase: how well do answers score that never look at an image?

Contract: `read_average_masks` reads training rows once. Of each phrase that is asked for later, it keeps the sum of the
squares of the training masks; memory grows with the number of these phrases, not with that of the rows. The average is
cut where the resulting mask, given to every training row of the phrase, has the best cIoU, in squares. That threshold
follows from the sums alone: a pixel of level v is in v · n of n training masks. So nothing is tuned on the results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from himtok_plugin.data.row_files import iter_rows
from himtok_plugin.data.samples import find_file, parse_row
from himtok_plugin.jobs.processes import Processes
from himtok_plugin.jobs.worker_pool import default_num_workers, map_ordered
from himtok_plugin.masks import Masks, from_square, to_rle, to_square

from .baseline_report import TrainingCounts
from .phrases import NO_PHRASE, list_answers

SIDE = 64  # of the squares of sums, in pixels: finer than what the masks of different images have in common
MAXIMUM = 255  # of a square's pixels
ROWS_PER_TASK = 64  # of a worker process
POOLED_BYTES = 1 << 22  # of training files from which worker processes are worth their start
PHRASES_AT_ONCE = 1024  # of which processes exchange sums: 16 kB each


class AverageMask(NamedTuple):
    """The average of training masks.

    Attributes:
        square: uint8 (s, s), share of the masks that have a pixel, times 255.
        threshold: share from which a pixel is foreground.
        no_target: whether most training answers of the phrase have no mask.
    """

    square: np.ndarray
    threshold: float
    no_target: bool


class MaskSum:
    """The sum of the squares of training answers.

    Args:
        dtype: of the sum; uint32 is enough for 16 million masks.
    """

    def __init__(self, dtype: type = np.uint32) -> None:
        self.total: np.ndarray = np.zeros((SIDE, SIDE), dtype)
        self.with_mask = 0
        self.without_mask = 0

    def add(self, square: np.ndarray | None) -> None:
        """Add an answer: uint8 (s, s), or None for an answer without a mask."""
        if square is None:
            self.without_mask += 1
        else:
            self.total += square
            self.with_mask += 1

    def merge(self, other: MaskSum) -> None:
        """Add the answers of another sum."""
        self.total += other.total
        self.with_mask += other.with_mask
        self.without_mask += other.without_mask

    def average(self) -> AverageMask:
        """Compute the average of the masks and its threshold.

        Of the pixels with at least a certain level, given to all answers, the intersections and unions with the squares
        are summed; answers without a mask count in the unions. The level with the largest quotient is chosen.
        """
        square = np.rint(self.total / max(self.with_mask, 1)).astype(np.uint8)
        levels, which, pixels = np.unique(square, return_inverse=True, return_counts=True)
        masked = np.bincount(which.ravel(), self.total.ravel() / MAXIMUM)  # pixels of all masks, by level
        area = np.cumsum(pixels[::-1])[::-1]  # of the pixels of this level or a higher one
        intersection = np.cumsum(masked[::-1])[::-1]
        union = (self.with_mask + self.without_mask) * area + masked.sum() - intersection
        best = int(np.argmax(intersection / union))
        below = levels[best - 1] if best else 0  # halfway to it, because resizing makes all values between the two
        threshold = (int(levels[best]) + int(below)) / 2 / MAXIMUM
        return AverageMask(square, threshold, self.without_mask > self.with_mask)


class AverageMasks:
    """The average masks of phrases.

    Args:
        by_phrase: of the phrases that training has.
        overall: of all training masks, for other phrases.
        training: what the training rows have.
    """

    def __init__(self, by_phrase: dict[str, AverageMask], overall: AverageMask, training: TrainingCounts) -> None:
        self.by_phrase = by_phrase
        self.overall = overall
        self.training = training
        self._draw = lru_cache(maxsize=1024)(self._draw_uncached)

    def has_mask(self, phrase: str) -> bool:
        """Whether the answer to a phrase is a mask, not "no target"."""
        return phrase not in self.by_phrase or not self.by_phrase[phrase].no_target

    def answer(self, phrase: str, size: tuple[int, int]) -> list[dict[str, Any]]:
        """Return the answer to a phrase about an image of size (h, w): one mask or none, as a COCO RLE."""
        if not self.has_mask(phrase):
            return []
        return [self._draw(phrase if phrase in self.by_phrase else None, size)]

    def _draw_uncached(self, phrase: str | None, size: tuple[int, int]) -> dict[str, Any]:
        average = self.overall if phrase is None else self.by_phrase[phrase]
        return dict(to_rle(from_square(average.square.astype(np.float32) / MAXIMUM, size, average.threshold)))


def read_average_masks(
    paths: Sequence[Path],
    phrases: Iterable[str],
    root: str | Path | None = None,
    processes: Processes | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> AverageMasks:
    """Read the average masks of training rows.

    Args:
        paths: the files of the training, in any format that ms-swift trains on.
        phrases: those whose average is kept, see `phrases.find_phrase`.
        root: folder of relative paths of masks.
        processes: the processes that share the work; each returns all averages.
        on_progress: called with the bytes read so far, of all files together.
    Raises:
        ValueError: a line is not a JSON object, or no row has a mask.
        OSError: a file cannot be read.
    """
    processes = processes or Processes()
    sums: dict[str, MaskSum | None] = dict.fromkeys(sorted(set(phrases) - {NO_PHRASE}))
    overall, skipped, first_skipped = MaskSum(np.uint64), 0, ""
    lines = _iter_lines(paths, processes, on_progress)
    is_large = sum(path.stat().st_size for path in paths) >= POOLED_BYTES
    workers = default_num_workers() if is_large and processes.count == 1 else 0
    tasks = iter(lambda: list(islice(lines, ROWS_PER_TASK)), [])
    for row in chain.from_iterable(map_ordered(_SquareReader(root), tasks, workers)):
        if isinstance(row, str):
            skipped, first_skipped = skipped + 1, first_skipped or row
            continue
        for phrase, square in row:
            overall.add(square)
            if phrase in sums:
                own = sums[phrase] = sums[phrase] or MaskSum()
                own.add(square)
    parts = processes.gather((overall, skipped, first_skipped))
    overall = _merge_sums([each for each, _, _ in parts]) or overall
    skipped = sum(each for _, each, _ in parts)
    first_skipped = next((each for _, _, each in parts if each), "")
    if not overall.with_mask:
        reason = f" (skipped {first_skipped})" if first_skipped else ""
        raise ValueError(
            f"--baseline: got {', '.join(map(str, paths))} without any mask{reason}, expected the rows of the training"
        )
    files = [str(path) for path in paths]
    training = TrainingCounts(files, overall.with_mask, overall.without_mask, skipped, first_skipped)
    return AverageMasks(_average_by_phrase(sums, processes), overall.average(), training)


def _average_by_phrase(sums: dict[str, MaskSum | None], processes: Processes) -> dict[str, AverageMask]:
    """Compute the averages of the phrases that training has; removes their sums, which are four times as large."""
    averages: dict[str, AverageMask] = {}
    phrases = list(sums)
    for begin in range(0, len(phrases), PHRASES_AT_ONCE):
        own = [sums.pop(phrase) for phrase in phrases[begin : begin + PHRASES_AT_ONCE]]
        parts = processes.gather(own)
        for phrase, several in zip(phrases[begin:], zip(*parts, strict=True), strict=False):
            merged = _merge_sums(several)
            if merged is not None:
                averages[phrase] = merged.average()
    return averages


def _merge_sums(several: Iterable[MaskSum | None]) -> MaskSum | None:
    """The sum of all answers; None if there are none."""
    merged = None
    for one in several:
        if merged is None:
            merged = one
        elif one is not None:
            merged.merge(one)
    return merged


def _iter_lines(
    paths: Sequence[Path], processes: Processes, on_progress: Callable[[int], None] | None
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the line of each row that is this process's share."""
    before = 0
    for path in paths:
        for number, line, _, consumed in iter_rows(path):
            if number % processes.count == processes.rank and line.strip():
                yield f"{path}: row {number}", line
            if on_progress is not None:
                on_progress(before + consumed)
        before += path.stat().st_size


class _SquareReader:
    """Reads the answers of training rows as squares; called in worker processes.

    Args:
        root: folder of relative paths of masks.
    """

    def __init__(self, root: str | Path | None) -> None:
        self._root = root

    def __call__(self, lines: list[tuple[str, bytes]]) -> list[list[tuple[str, np.ndarray | None]] | str]:
        """Return the (phrase, square) of each answer of each row, or why the row cannot be used."""
        return [self._read(name, line) for name, line in lines]

    def _read(self, name: str, line: bytes) -> list[tuple[str, np.ndarray | None]] | str:
        try:
            row = parse_row(line)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        try:
            answers = list_answers(row, name)
            return [(phrase, self._load_square(masks)) for phrase, masks in answers]
        except (ValueError, OSError) as error:
            return str(error) if str(error).startswith(name) else f"{name}: {error}"

    def _load_square(self, sources: list[Any]) -> np.ndarray | None:
        """The square of the union of masks, uint8 (s, s); None if it is empty."""
        if not sources:
            return None
        masks = Masks.load(map(find_file, sources) if self._root is None else sources, root=self._root)
        union = masks.union()
        return np.rint(to_square(union, SIDE) * MAXIMUM).astype(np.uint8) if union.any() else None
