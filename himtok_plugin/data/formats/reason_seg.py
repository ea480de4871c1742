"""ReasonSeg: an image and, beside it, a LabelMe JSON with `text`, `is_sentence` and shapes, some to be ignored.

Contract: one record per image, with one query for all its texts, which mean the same region. Masks are painted as the
authors' code does it: shapes from large to small, later ones on top; "ignore" is no target and not background either;
"flag" is nothing. Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...coco_masks import short
from ..byte_ranges import parse_json
from ..records import BAD_ENTRY, NOT_UTF8, BadEntry, PixelPolygons, Query, Record, Region, SkipLog
from .reader import ImageFinder, Reader, Source, files_below, find_path

TARGET, IGNORE = 1, 255
NOTHING = "flag"


class ReasonSegReader(Reader):
    """`<root>/<split>/*.jpg` with `*.json` of the same name."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        split = source.split
        self.folder = self.annotation_file(split, f"ReasonSeg/{split}", f"reason_seg/ReasonSeg/{split}")
        find_path(self.folder, None, ("*.json",), "annotations")
        self.finder = ImageFinder(source, (str(self.folder.absolute()), "images", f"images/{split}"))

    def tasks(self, log: SkipLog) -> Sequence[Path]:
        return files_below(self.folder, (".json",))

    def records(self, task: Path, log: SkipLog) -> Iterator[Record]:
        try:
            entry = _load(task)
            texts = entry.get("text") if isinstance(entry, dict) else None
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
                raise BadEntry(BAD_ENTRY, f"text is {short(texts)}: expected a list of texts")
            painted = _painted(entry.get("shapes"))
        except BadEntry as error:
            raise BadEntry(error.reason, f"{task}: {error.detail}") from error
        path, size = self._image(task)
        targets = [Region(PixelPolygons(painted, TARGET), id=task.stem)]
        ignore = PixelPolygons(painted, IGNORE) if any(value == IGNORE for _, value in painted) else None
        if not any(value == TARGET for _, value in painted):
            targets = []
        query = Query(
            tuple(" ".join(text.split()) for text in texts),
            tuple(range(len(targets))),
            sentence=bool(entry.get("is_sentence", False)),
            ignore=ignore,
            id=task.stem,
        )
        yield Record(path, size, task.stem, tuple(targets), (query,))

    def _image(self, task: Path) -> tuple[str, tuple[int, int]]:
        error = None
        for suffix in (".jpg", ".png", ".jpeg"):
            try:
                # Its size is not in the file: the image has to be there.
                return self.finder.find(task.stem + suffix)
            except BadEntry as failure:
                error = error or failure
        raise error


def _load(path: Path) -> Any:
    """Most files are UTF-8; for the others the authors' own code falls back to Windows' code page, as here."""
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        data = data.decode("cp1252", "replace").encode("utf-8")
        if "\ufffd".encode() in data:
            raise BadEntry(NOT_UTF8, "neither UTF-8 nor cp1252") from None
    return parse_json(data, path.name)


def _painted(shapes: Any) -> tuple:
    """(points, value) from the largest shape to the smallest."""
    if not isinstance(shapes, list):
        raise BadEntry(BAD_ENTRY, f"shapes is {short(shapes)}: expected a list")
    sized = []
    for shape in shapes:
        points = shape.get("points") if isinstance(shape, dict) else None
        label = str(shape.get("label", "")).lower() if isinstance(shape, dict) else ""
        try:
            points = [(float(x), float(y)) for x, y in points]
            if len(points) < 3 or not all(abs(v) < 1e6 for point in points for v in point):
                raise ValueError(f"{len(points)} points")
        except (TypeError, ValueError) as error:
            raise BadEntry(BAD_ENTRY, f"points of {label!r}: {error}: expected three points [x, y] or more") from error
        if NOTHING in label:
            continue
        value = IGNORE if "ignore" in label else TARGET
        sized.append((_area(points), points, value))
    sized.sort(key=lambda entry: -entry[0])
    return tuple((points, value) for _, points, value in sized)


def _area(points: list[tuple[float, float]]) -> float:
    """By the shoelace formula."""
    following = points[1:] + points[:1]
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, following, strict=True))) / 2
