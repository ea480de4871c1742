"""A model's own answers, given to other images: does the model look at the image?

Contract: every result gets the answer to its phrase about another image. Each answer is used once, unless one image has
more than half of a phrase's answers. A result whose phrase was asked about no other image gets the answer to any phrase
about another image, and is counted: its low score says nothing about looking. All follows from the results and the
seed. A few numbers per result stay in memory; answers are read again from the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import numpy as np

from himtok_plugin.data.row_files import iter_rows, read_row
from himtok_plugin.data.samples import parse_row
from himtok_plugin.masks import from_square, load_mask, to_rle, to_square
from himtok_plugin.masks.rle import check_size

from .phrases import NO_PHRASE, find_phrase
from .results import ERROR, PREDICTED, get_image, has_true_masks


class ShuffledAnswers:
    """Which result gets the answer of which other one.

    Args:
        path: the result file.
        seed: of the draw.
        left_out: numbers of lines that are not scored.
        on_progress: called with the bytes read so far.
    Attributes:
        phrases: those of all results with true masks, also of those without an answer.
        usual_size: (h, w) of most predicted masks; None if there are none.
    Raises:
        ValueError: a result cannot be read, or there are no answers about two different images.
        OSError: the file cannot be read.
    """

    def __init__(
        self,
        path: str | Path,
        seed: int = 0,
        left_out: Set[int] = frozenset(),
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.path = path
        self.seed = seed
        self.phrases: set[str] = set()
        lines: list[int] = []
        ranges: list[tuple[int, int]] = []
        phrases: list[int] = []
        images: list[int] = []
        phrase_numbers: dict[str, int] = {}
        image_numbers: dict[str, int] = {}
        sizes: Counter[tuple[int, int]] = Counter()
        for number, line, begin, end in iter_rows(Path(path)):
            if on_progress is not None:
                on_progress(end)
            if number in left_out or not line.strip():
                continue
            try:
                row = parse_row(line)
                if row.get(ERROR) is None and not has_true_masks(row):
                    continue
                phrase = find_phrase(row)
                sizes.update(_list_sizes(row))
            except ValueError as error:
                raise ValueError(f"{path}: row {number}: {error}") from error
            self.phrases.add(phrase)
            if row.get(ERROR) is not None:
                continue
            lines.append(number)
            ranges.append((begin, end))
            # Results without a question share none.
            phrases.append(phrase_numbers.setdefault(phrase if phrase != NO_PHRASE else f"\n{number}", len(phrases)))
            images.append(image_numbers.setdefault(get_image(row, number), len(images)))
        if len(image_numbers) < 2:
            raise ValueError(
                f"--baseline: got answers about {len(image_numbers)} images with true masks in {path}, expected at "
                "least 2, whose answers can be exchanged"
            )
        self.usual_size = sizes.most_common(1)[0][0] if sizes else None
        self._lines = np.array(lines)
        self._ranges = np.array(ranges)
        rng = np.random.default_rng(seed)
        self._donors, self._is_same_phrase = draw_donors(np.array(phrases), np.array(images), rng)

    def has_same_phrase(self, line: int | None) -> bool:
        """Whether the answer that the result on a line gets is one to the same phrase."""
        return bool(self._is_same_phrase[self._find(line)])

    def read_answer(self, line: int | None) -> tuple[int, dict[str, Any]]:
        """Read the result whose answer the result on a line gets, and return its own line and content."""
        donor = self._donors[self._find(line)]
        begin, end = self._ranges[donor].tolist()
        with open(self.path, "rb") as file:
            return int(self._lines[donor]), parse_row(read_row(file, begin, end))

    def _find(self, line: int | None) -> int:
        place = int(np.searchsorted(self._lines, -1 if line is None else line))
        if place == len(self._lines) or self._lines[place] != line:
            raise ValueError(f"line: got {line}, expected one of {self.path} with an answer")
        return place


def draw_donors(phrases: np.ndarray, images: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw for every result another one, about another image.

    Args:
        phrases, images: int (n,), of each result; at least two different images.
    Returns:
        int (n,), the number of the result whose answer each one gets; bool (n,), whether it has the same phrase.
    """
    n = len(phrases)
    # Results of a phrase in a random order in which those about the same image follow each other.
    ranks = rng.permutation(images.max() + 1)[images]
    order = np.lexsort((rng.random(n), ranks, phrases))
    phrase, image = phrases[order], images[order]
    group_begin, group_end = _find_runs(phrase[1:] != phrase[:-1])
    run_begin, run_end = _find_runs((phrase[1:] != phrase[:-1]) | (image[1:] != image[:-1]))
    length = run_end - run_begin
    group = group_end - group_begin
    longest = np.maximum.reduceat(length, np.unique(group_begin))[np.unique(group_begin, return_inverse=True)[1]]
    # The answer as many places further as the longest run is long. If that is at most half of the phrase's results, it
    # is always about another image; if it is more, as often as is possible.
    place = group_begin + (np.arange(n) - group_begin + longest) % group
    # The others of that image draw from the answers to the phrase about other images.
    redrawn = np.flatnonzero((image[place] == image) & (length < group))
    place[redrawn] = _draw_outside(run_begin, run_end, group_begin, group_end, redrawn, rng)
    donors = np.empty(n, int)
    donors[order] = order[place]
    same_phrase = images[donors] != images
    order = np.argsort(images, kind="stable")
    run_begin, run_end = _find_runs(np.diff(images[order]) != 0)
    rest = np.flatnonzero(~same_phrase[order])
    everything = np.zeros(n, int), np.full(n, n)
    donors[order[rest]] = order[_draw_outside(run_begin, run_end, *everything, rest, rng)]
    return donors, same_phrase


def _find_runs(is_change: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Begin and exclusive end, int (n,), of the run that each place is in, from where neighbours differ, (n - 1,)."""
    begins = np.flatnonzero(np.r_[True, is_change])
    lengths = np.diff(np.r_[begins, len(is_change) + 1])
    return np.repeat(begins, lengths), np.repeat(begins + lengths, lengths)


def _draw_outside(
    run_begin: np.ndarray,
    run_end: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    which: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """For each of the places `which`, draw a place from `begin` to `end` that is not in its run."""
    if not len(which):
        return which
    first, length = run_begin[which], (run_end - run_begin)[which]
    drawn = begin[which] + rng.integers(0, (end - begin)[which] - length)
    return drawn + (drawn >= first) * length


def _list_sizes(row: dict[str, Any]) -> list[tuple[int, int]]:
    """The sizes of the predicted masks of a result; bad ones are refused where the masks are read."""
    masks = row.get(PREDICTED)
    sizes = [mask.get("size") for mask in masks if isinstance(mask, dict)] if isinstance(masks, list) else []
    return [(size[0], size[1]) for size in sizes if isinstance(size, list) and [*map(type, size)] == [int, int]]


def transfer_masks(row: dict[str, Any], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the predicted masks of a result for an image of another size (h, w), resized by way of the square.

    Raises:
        ValueError: a mask cannot be read.
    """
    moved = []
    for i, mask in enumerate(row.get(PREDICTED) or []):
        try:
            if check_size(mask["size"]) != tuple(size):
                mask = {**mask, **to_rle(from_square(to_square(load_mask(mask)), size))}
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{PREDICTED}[{i}]: {error}") from error
        moved.append(mask)
    return moved
