"""ReasonSeg: for each image a LabelMe JSON with `text`, `is_sentence` and shapes; some shapes are ignored regions.

Contract: one record per image, with one query for all its texts, which refer to the same region. Masks are painted like
in the authors' code: shapes from large to small by their number of pixels, one or two points as a dot or a line. A
shape whose label contains "ignore" is neither target nor background; the label "flag" is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from himtok_plugin.data.byte_ranges import parse_json, parse_json_file
from himtok_plugin.data.polygon_checks import convert_good_parts
from himtok_plugin.data.records import PixelPolygons, Query, Record, Region
from himtok_plugin.data.skip_log import BAD_ENTRY, NOT_UTF8, AnnotationError, SkipLog
from himtok_plugin.validation import abridged, finite_numbers

from .image_finder import ImageFinder
from .reader import Reader, Source, find_path, list_files

TARGET, IGNORE = 1, 255
UNUSED_LABEL = "flag"
MAX_COORDINATE = 1e6  # pixels, larger than any image


class ReasonSegReader(Reader):
    """`<root>/<split>/*.jpg` with `*.json` of the same name."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        split = source.split
        self.folder = self.annotation_file(split, f"ReasonSeg/{split}", f"reason_seg/ReasonSeg/{split}")
        find_path(self.folder, None, ("*.json",), "annotations")
        self.finder = ImageFinder(source, (str(self.folder.absolute()), "images", f"images/{split}"))

    def list_items(self, log: SkipLog) -> Sequence[Path]:
        return list_files(self.folder, (".json",), log)

    def read_records(self, item: Path, log: SkipLog) -> Iterator[Record]:
        entry = _load_annotation(item)
        try:
            texts = entry.get("text") if isinstance(entry, dict) else None
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
                raise AnnotationError(BAD_ENTRY, f"text is {abridged(texts)}: expected a list of texts")
            shapes = _parse_shapes(entry.get("shapes"), log, str(item))
        except AnnotationError as error:
            raise AnnotationError(error.reason, f"{item}: {error.detail}") from error
        path, size = self._image(item)
        painted = _sort_by_area(shapes, size)
        targets = [Region(PixelPolygons(painted, TARGET), id=item.stem)]
        ignore = PixelPolygons(painted, IGNORE) if any(value == IGNORE for _, value in painted) else None
        if not any(value == TARGET for _, value in painted):
            targets = []
        query = Query(
            tuple(" ".join(text.split()) for text in texts),
            tuple(range(len(targets))),
            sentence=bool(entry.get("is_sentence", False)),
            ignore=ignore,
            id=item.stem,
        )
        yield Record(path, size, item.stem, tuple(targets), (query,))

    def _image(self, annotation: Path) -> tuple[str, tuple[int, int]]:
        # The annotation has no image size: the image must exist.
        return self.finder.find(f"{annotation.stem}.jpg", near=annotation.parent, any_suffix=True)


def _load_annotation(path: Path) -> Any:
    """Parse a file; like in the authors' code, one in no encoding of Unicode is decoded as cp1252."""
    try:
        return parse_json_file(path)
    except AnnotationError as error:
        if error.reason != NOT_UTF8:
            raise
    data = path.read_bytes().decode("cp1252", "replace").encode("utf-8")
    if "\ufffd".encode() in data:
        raise AnnotationError(NOT_UTF8, f"{path}: neither UTF-8 nor cp1252")
    return parse_json(data, str(path))


Shape = tuple[list[tuple[float, float]], int]  # points, value


def _parse_shapes(shapes: Any, log: SkipLog, where: str) -> list[Shape]:
    """The shapes to paint. Points of unused shapes are not checked, because there are often too few."""
    if not isinstance(shapes, list):
        raise AnnotationError(BAD_ENTRY, f"shapes is {abridged(shapes)}: expected a list")
    used = []
    for shape in shapes:
        label = shape.get("label") if isinstance(shape, dict) else None
        if not isinstance(label, str):
            raise AnnotationError(BAD_ENTRY, f"a shape is {abridged(shape)}: expected a label and points")
        if label.lower() != UNUSED_LABEL:
            used.append(shape)
    return convert_good_parts(_parse_shape, used, log, where)


def _parse_shape(shape: dict[str, Any]) -> Shape:
    label = shape["label"].lower()
    try:
        points = [(x, y) for x, y in (finite_numbers(point).tolist() for point in shape.get("points") or ())]
        if not points or not all(abs(v) < MAX_COORDINATE for point in points for v in point):
            raise ValueError(f"{abridged(points)}")
    except (TypeError, ValueError) as error:
        raise AnnotationError(BAD_ENTRY, f"points of {label!r}: {error}: expected [x, y], one or more") from error
    return points, IGNORE if "ignore" in label else TARGET


def _sort_by_area(shapes: Sequence[Shape], size: tuple[int, int]) -> tuple[Shape, ...]:
    """Sort by the number of pixels in the image, descending; of equals the later first, like the authors' code."""
    areas = [int(PixelPolygons(((points, TARGET),), TARGET).mask(size).sum()) for points, _ in shapes]
    return tuple(shapes[i] for i in np.argsort(areas, kind="stable")[::-1])
