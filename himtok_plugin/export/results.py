"""The images of a result file with their predicted masks: several results of an image together.

Contract: `collect_images` reads the file once and keeps masks as RLE, so that large files fit in memory. What is
in no annotation is counted in `Collected.skipped`, with its reason and its line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from himtok_plugin.data.skip_log import BAD_MASK, EMPTY_MASK, SkipLog
from himtok_plugin.evaluation.result_keys import check_rows_once, find_repeated_lines, get_result_key
from himtok_plugin.evaluation.results import ERROR, PREDICTED, get_mask_score, read_results
from himtok_plugin.masks.rle import check_size, rle_to_mask
from himtok_plugin.masks.run_lengths import Runs
from himtok_plugin.validation import abridged

from .annotations import DEFAULT_LABEL, ExportImage, ExportObject
from .labels import name_masks

FAILED = "result has an error instead of an answer"
NOT_A_RESULT = "line is no result with masks"
NO_IMAGE = "result names no image"
LOW_SCORE = "score is below --min_score"
OTHER_SIZE = "mask has another size than the other masks of its image"
REPEATED = "row has another result, see --duplicates"


@dataclass(frozen=True)
class StoredObject:
    """An object whose mask is kept as COCO RLE."""

    rle: dict[str, Any]
    label: str
    score: float | None
    expression: str | None


@dataclass
class ResultImage:
    """An image of a result file.

    Attributes:
        path: as the results name it.
        size: (h, w) of its masks; None if there are none.
        line: of its first result.
        objects: of all its results.
    """

    path: str
    size: tuple[int, int] | None
    line: int
    objects: list[StoredObject] = field(default_factory=list)

    def decode(self, name: str, size: tuple[int, int]) -> ExportImage:
        """The image with its masks in pixels; `name` and `size` as in `ExportImage`."""
        objects = [
            ExportObject(rle_to_mask(each.rle["counts"], size), each.label, each.score, each.expression)
            for each in self.objects
        ]
        return ExportImage(name, size, objects)


@dataclass
class Collected:
    """What a result file holds.

    Attributes:
        images: by the path that the results name, in order of appearance.
        results: lines with an answer.
        without_masks: of these, answers without a mask.
        cut: masks whose text is cut or malformed; they are exported.
        unnamed: objects whose label nothing names.
        phrases: objects whose label is the expression of a question.
        skipped: what is in no annotation, and why.
    """

    images: dict[str, ResultImage] = field(default_factory=dict)
    results: int = 0
    without_masks: int = 0
    cut: int = 0
    unnamed: int = 0
    phrases: int = 0
    skipped: SkipLog = field(default_factory=SkipLog)


def collect_images(
    path: Path,
    label: str | None = None,
    min_score: float = 0.0,
    duplicates: str = "refuse",
    on_progress: Callable[[int], None] | None = None,
) -> Collected:
    """Read a result file.

    Args:
        path: of `swift infer --plugin himtok`.
        label: the class of all objects; what the results call them is their expression then.
        min_score: masks with a lower score are left out; those without a score are kept.
        duplicates: see `result_keys.find_repeated_lines`.
        on_progress: called with the bytes read so far.
    Raises:
        ValueError: a line is not a JSON object, or a row has two results.
        OSError: the file cannot be read.
    """
    found = Collected()
    repeated = find_repeated_lines(path, duplicates)
    keys = []
    for line, row in read_results(path, on_progress):
        if line in repeated:
            found.skipped.add_unused(REPEATED, f"line {line}")
            continue
        if (key := get_result_key(row)) is not None:
            keys.append((line, key))
        _add_result(found, row, line, label, min_score)
    check_rows_once(path, keys)
    return found


def _add_result(found: Collected, row: dict[str, Any], line: int, label: str | None, min_score: float) -> None:
    if row.get(ERROR) is not None:
        found.skipped.add(FAILED, f"line {line}: {str(row[ERROR]):.200}")
        return
    masks = row.get(PREDICTED)
    if not isinstance(masks, list) or "response" not in row and not all(isinstance(mask, dict) for mask in masks):
        found.skipped.add(NOT_A_RESULT, f"line {line}: has {abridged(list(row))}: expected a result of `swift infer`")
        return
    found.results += 1
    found.without_masks += not masks
    path = get_image_path(row)
    if path is None:
        found.skipped.add(NO_IMAGE, f"line {line}: images is {abridged(row.get('images'))}")
        return
    image = found.images.setdefault(path, ResultImage(path, None, line))
    entries = [mask if isinstance(mask, dict) else {} for mask in masks]
    for i, (mask, name) in enumerate(zip(entries, name_masks(row, entries), strict=True)):
        try:
            size, score = check_size(mask.get("size") or (), f"{PREDICTED}[{i}].size"), get_mask_score(mask, i)
            runs = Runs.from_rle(mask)
        except (ValueError, KeyError) as error:
            found.skipped.add(BAD_MASK, f"line {line}: {error}")
            continue
        image.size = image.size or size
        where = f"line {line}, mask {i}, of {path}"
        if score is not None and score < min_score:
            found.skipped.add_unused(LOW_SCORE, f"{where}: {score}")
            continue
        if size != image.size or not runs.area:
            reason = OTHER_SIZE if size != image.size else EMPTY_MASK
            found.skipped.add(reason, f"{where}: (h, w) = {size}, expected {image.size}")
            continue
        found.cut += mask.get("complete") is False
        found.unnamed += label is None and name.label is None
        found.phrases += label is None and name.label is not None and name.is_phrase
        own = label or name.label or DEFAULT_LABEL
        expression = name.expression or (name.label if name.label != own else None)
        rle = {"size": list(size), "counts": mask["counts"]}
        image.objects.append(StoredObject(rle, own, score, expression))


def get_image_path(row: Mapping[str, Any]) -> str | None:
    """The path of a result's first image, to which its masks belong; None if it names none."""
    images = row.get("images")
    first = images[0] if isinstance(images, list) and images else images
    path = first.get("path") if isinstance(first, dict) else first
    return path if isinstance(path, str) and path and not path.startswith("data:") else None
