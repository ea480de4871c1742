"""Result files of `swift infer --plugin himtok`: their lines, and the masks, boxes and scores in a result.

Contract: `read_results` yields one parsed line at a time. The other functions take such a result and check what they
read: an invalid value raises a ValueError that begins with its key. `load_result_runs` loads masks as run lengths,
which is enough for areas and overlaps; `load_result_masks` loads them as pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from himtok_plugin.data.row_files import iter_rows
from himtok_plugin.data.samples import first_image_size, parse_row
from himtok_plugin.files.images import open_header
from himtok_plugin.masks import Masks, MaskSource, load_mask
from himtok_plugin.masks.rle import check_size
from himtok_plugin.masks.run_lengths import Runs
from himtok_plugin.metrics.matching import matched_ious
from himtok_plugin.metrics.segmentation import Overlap
from himtok_plugin.validation import abridged

from .protocols import PLAIN, Protocol

PREDICTED, TRUE, IGNORED = "masks", "target_masks", "ignore"  # keys of a result
PREDICTED_BOXES, TRUE_BOXES = "boxes", "target_boxes"
ERROR = "error"  # why a row has no answer
CLASS = "category"
UNKNOWN_SIZE = (1, 1)  # of a result without any mask: its two unions are empty, and equal at every size


def read_results(
    path: str | Path, on_progress: Callable[[int], None] | None = None, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a result file, each with its line number, counted from 1; blank lines are left out.

    Args:
        path: JSON lines, or a JSON list.
        on_progress: called after each line with the bytes read so far.
        share: (rank, count): this process parses and gets every count-th line only.
    Raises:
        ValueError: a line is not a JSON object.
        OSError: the file cannot be read.
    """
    for number, line, _, consumed in iter_rows(Path(path)):
        if number % share[1] == share[0] and line.strip():
            try:
                row = parse_row(line)
            except ValueError as error:
                raise ValueError(f"{path}: row {number}: {error}") from error
            yield number, row
        if on_progress is not None:
            on_progress(consumed)


def has_true_masks(row: dict[str, Any]) -> bool:
    """Whether a result has true masks, possibly an empty list of them; without, its masks cannot be scored.

    Raises:
        ValueError: not a result: it has neither true nor predicted masks, nor true boxes.
    """
    if row.get(TRUE) is None and PREDICTED not in row and row.get(TRUE_BOXES) is None:
        raise ValueError(f"has no {PREDICTED!r}: expected a result of `swift infer --plugin himtok`")
    return row.get(TRUE) is not None


def get_mask_score(mask: Any, i: int, key: str = "score") -> float | None:
    """The score of the i-th predicted mask of a result; None if it has none.

    Raises:
        ValueError: the score is not a number in [0, 1].
    """
    score = mask.get(key) if isinstance(mask, dict) else None
    is_number = isinstance(score, int | float) and not isinstance(score, bool)
    if score is not None and not (is_number and 0 <= score <= 1):
        raise ValueError(f"{PREDICTED}[{i}].{key} is {abridged(score)}: expected a number in [0, 1]")
    return score


def get_mask_scores(row: dict[str, Any]) -> list[float | None]:
    """The scores of all predicted masks of a result, see `get_mask_score`."""
    masks = row.get(PREDICTED)
    return [get_mask_score(mask, i) for i, mask in enumerate(masks)] if isinstance(masks, list) else []


def check_min_score(min_score: float) -> None:
    """Raise a ValueError if `min_score` is not a number in [0, 1]; NaN is not."""
    if not 0 <= min_score <= 1:
        raise ValueError(f"min_score: got {min_score!r}, expected a number in [0, 1]")


def drop_low_scores(row: dict[str, Any], min_score: float) -> dict[str, Any]:
    """The result without the predicted masks whose score is lower; masks without a score are kept.

    Raises:
        ValueError: a score is not a number in [0, 1].
    """
    masks = row.get(PREDICTED)
    if not min_score or not isinstance(masks, list):
        return row
    pairs = zip(masks, get_mask_scores(row), strict=True)
    return {**row, PREDICTED: [mask for mask, score in pairs if score is None or score >= min_score]}


def get_question(row: dict[str, Any]) -> str:
    """The content of the last user message; empty for a result without messages."""
    messages = row.get("messages")
    asked = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"] if messages else []
    content = asked[-1].get("content") if asked else ""
    return content if isinstance(content, str) else ""


def get_image(row: dict[str, Any], line: int) -> str:
    """What tells the image of a result from others: its path; for images without a path, the number of its line."""
    images = row.get("images") or [f"row {line}"]
    first = images[0].get("path") if isinstance(images[0], dict) else images[0]
    return first if isinstance(first, str) else f"row {line}"


def find_size(row: dict[str, Any], root: str | Path | None = None) -> tuple[int, int] | None:
    """(h, w) of the image of a result: that of its first mask, or else that of its first image; None if it has neither.

    Args:
        row: the result.
        root: folder of relative paths.
    Raises:
        ValueError: a mask has no valid size.
        OSError: a mask file cannot be read.
    """
    for key in (TRUE, PREDICTED, IGNORED):
        for i, source in enumerate(_get_sources(row, key) if row.get(key) is not None else []):
            if isinstance(source, dict):
                return check_size(_get_size(source), f"{key}[{i}].size")
            if isinstance(source, str):
                return open_header(Path(root or "", source)).size
    size = first_image_size(row)
    return size if size or root is None else first_image_size({"images": [str(Path(root, get_image(row, 0)))]})


def get_boxes(row: dict[str, Any], key: str) -> list[list[float]] | None:
    """The boxes of a result, x1, y1, x2, y2 in pixels; None if it has no such key.

    Args:
        row: the result.
        key: `boxes` or `target_boxes`.
    Raises:
        ValueError: not a list of four numbers each.
    """
    boxes = row.get(key)
    if boxes is None:
        return None
    for i, box in enumerate(boxes if isinstance(boxes, list) else [boxes]):
        numbers = isinstance(box, list) and [v for v in box if isinstance(v, int | float) and not isinstance(v, bool)]
        if not isinstance(boxes, list) or not numbers or len(box) != 4 or len(numbers) != 4:
            raise ValueError(f"{key}[{i}] is {abridged(box)}: expected [x1, y1, x2, y2]")
    return boxes


class ResultRuns(NamedTuple):
    """The masks of a result as run lengths: predicted, true and ignored ones of size (h, w)."""

    predicted: list[Runs]
    true: list[Runs]
    ignore: list[Runs]
    size: tuple[int, int]

    @property
    def missing(self) -> bool:
        """Whether no mask was predicted although there is a target."""
        return not self.predicted and any(mask.area for mask in self.true)

    def overlap(self, protocol: Protocol = PLAIN) -> Overlap:
        """Count the pixels of the union of the predicted masks, of the union of the true ones, and of both."""
        return protocol.overlap(self.predicted, self.true, self.ignore, self.size)

    def matched_ious(self, protocol: Protocol = PLAIN) -> list[float]:
        """IoU of each predicted mask with the true mask that it is matched with, under a protocol."""

        def iou(one: Runs, other: Runs) -> float:
            overlap = protocol.overlap([one], [other], self.ignore, self.size)
            return overlap.iou if overlap.target else 0.0

        return matched_ious(self.predicted, self.true, iou)


def load_result_runs(row: dict[str, Any], root: str | Path | None = None) -> ResultRuns:
    """Load the masks of a result as run lengths; RLEs are not decoded to pixels.

    Args:
        row: with `masks` and `target_masks`, see `scoring.score_results`.
        root: folder of relative paths.
    Raises:
        ValueError: a mask cannot be read, or masks differ in size.
    """
    sources = _check_sources(row)
    runs: dict[str, list[Runs]] = {key: _load_runs(masks, key, root) for key, masks in sources.items()}
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
    """Load the masks of a result as pixels: predicted, true and ignored masks. See `load_result_runs`."""
    sources = _check_sources(row)
    size: tuple[int, int] | None = None
    if sources[PREDICTED]:
        size = check_size(_get_size(sources[PREDICTED][0]), f"{PREDICTED}[0].size")
    true = _load_masks(sources[TRUE], TRUE, size, root)
    size = true.size if true else size
    ignore = _load_masks(sources[IGNORED], IGNORED, size, root)
    size = ignore.size if ignore else size or UNKNOWN_SIZE
    return _load_masks(sources[PREDICTED], PREDICTED, size, None), true or Masks([], size), ignore


def _check_sources(row: dict[str, Any]) -> dict[str, list[MaskSource]]:
    found = {key: _get_sources(row, key) for key in (PREDICTED, TRUE)}
    for i, source in enumerate(found[PREDICTED]):
        if not isinstance(source, dict):
            raise ValueError(f"{PREDICTED}[{i}] is {abridged(source)}: expected a COCO RLE")
    return {**found, IGNORED: _get_sources(row, IGNORED) if row.get(IGNORED) is not None else []}


def _get_sources(row: dict[str, Any], key: str) -> list[MaskSource]:
    if key not in row:
        raise ValueError(f"has no {key!r}: expected a result of `swift infer --plugin himtok` on rows with masks")
    value = [row[key]] if key == IGNORED and isinstance(row[key], str | dict) else row[key]
    if not isinstance(value, list):
        raise ValueError(f"{key} is {abridged(value)}: expected a list of masks")
    return value


def _get_size(source: Any) -> Any:
    """What an RLE has as its size; `check_size` decides whether it is one."""
    return source.get("size")


def _load_runs(sources: list[MaskSource], key: str, root: str | Path | None) -> list[Runs]:
    runs = []
    for i, source in enumerate(sources):
        try:
            if isinstance(source, dict) and "counts" in source:
                check_size(_get_size(source), f"{key}[{i}].size")
                runs.append(Runs.from_rle(source))
            else:
                located = Path(root, source) if root is not None and isinstance(source, str | Path) else source
                runs.append(Runs.from_mask(load_mask(located)))
        except ValueError as error:
            message = str(error)
            raise ValueError(message if message.startswith(f"{key}[") else f"{key}[{i}]: {message}") from error
    return runs


def _load_masks(sources: list[MaskSource], key: str, size: tuple[int, int] | None, root: str | Path | None) -> Masks:
    if not sources:
        return Masks([], size or UNKNOWN_SIZE)
    try:
        return Masks.load(sources, size, root)
    except ValueError as error:  # its message begins with "masks[i]" for every key
        raise ValueError(key + str(error).removeprefix("masks")) from error
