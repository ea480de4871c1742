"""ReasonSeg: an image and, beside it, a LabelMe JSON with `text`, `is_sentence` and shapes, some to be ignored.

Contract: one record per image, with one query for all its texts, which mean the same region. Masks are painted as the
authors' code does it: shapes from large to small by their pixels, one or two points as a dot or a line; a label with
"ignore" in it is no target and not background either; "flag" is nothing. Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from himtok_plugin.data.byte_ranges import parse_json
from himtok_plugin.data.records import (
    BAD_ENTRY,
    NOT_UTF8,
    BadEntry,
    PixelPolygons,
    Query,
    Record,
    Region,
    SkipLog,
)
from himtok_plugin.validation import abridged

from .reader import ImageFinder, Reader, Source, files_below, find_path

TARGET, IGNORE = 1, 255
NOTHING = "flag"
FAR = 1e6  # pixels, farther than any image reaches


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
                raise BadEntry(BAD_ENTRY, f"text is {abridged(texts)}: expected a list of texts")
            shapes = list(_shapes(entry.get("shapes")))
        except BadEntry as error:
            raise BadEntry(error.reason, f"{task}: {error.detail}") from error
        path, size = self._image(task)
        painted = _by_area(shapes, size)
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


Shape = tuple[list[tuple[float, float]], int]  # points, value


def _shapes(shapes: Any) -> Iterator[Shape]:
    """What is to be painted; of shapes that are nothing the points are not looked at, they often are too few."""
    if not isinstance(shapes, list):
        raise BadEntry(BAD_ENTRY, f"shapes is {abridged(shapes)}: expected a list")
    for shape in shapes:
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str):
            raise BadEntry(BAD_ENTRY, f"a shape is {abridged(shape)}: expected a label and points")
        label = label.lower()
        if label == NOTHING:
            continue
        try:
            points = [(float(x), float(y)) for x, y in shape.get("points")]
            if not points or not all(abs(v) < FAR for point in points for v in point):
                raise ValueError(f"{abridged(points)}")
        except (TypeError, ValueError) as error:
            raise BadEntry(BAD_ENTRY, f"points of {label!r}: {error}: expected [x, y], one or more") from error
        yield points, IGNORE if "ignore" in label else TARGET


def _by_area(shapes: Sequence[Shape], size: tuple[int, int]) -> tuple[Shape, ...]:
    """From the most pixels within the image to the least; of equals the later first, as the authors' sorting does."""
    areas = [int(PixelPolygons(((points, TARGET),), TARGET).mask(size).sum()) for points, _ in shapes]
    return tuple(shapes[i] for i in np.argsort(areas, kind="stable")[::-1])
