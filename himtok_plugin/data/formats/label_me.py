"""The user's own LabelMe folder: images with a JSON of the same name beside each.

Contract: one record per JSON. A shape is a polygon, rectangle, circle or mask; shapes of one label and group are one
region. A shape's `description`, where LabelMe has one, is an expression for it. Does not know prompts and rows.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from himtok_plugin.data.byte_ranges import parse_json
from himtok_plugin.data.records import (
    BAD_ENTRY,
    BAD_MASK,
    BadEntry,
    Query,
    Record,
    Region,
    SkipLog,
    polygons_to_rle,
    size_of,
)
from himtok_plugin.masks.sources import load_mask
from himtok_plugin.validation import abridged

from .reader import ImageFinder, Reader, Source, files_below, split_names


class LabelMeReader(Reader):
    """`<root>/**/*.json`; a split is a folder below the root."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.folder = self.annotation_file(*(split_names(source.split) if source.split != "all" else ["."]))
        self.finder = ImageFinder(source, (str(self.folder.absolute()), ""))

    def tasks(self, log: SkipLog) -> Sequence[Path]:
        files = files_below(self.folder, (".json",))
        if not files:
            raise ValueError(f"{self.folder}: holds no *.json, expected a LabelMe folder")
        return files

    def records(self, task: Path, log: SkipLog) -> Iterator[Record]:
        try:
            entry = parse_json(task.read_bytes(), task.name)
            if not isinstance(entry, dict) or not isinstance(entry.get("shapes"), list):
                raise BadEntry(BAD_ENTRY, "has no shapes: expected a LabelMe file")
            path, size = self._image(task, entry)
        except BadEntry as error:
            raise BadEntry(error.reason, f"{task}: {error.detail}") from error
        regions: list[Region] = []
        queries = []
        incomplete = set()
        for shapes in _objects(entry["shapes"]):
            label = str(shapes[0].get("label"))
            try:
                region = Region(_mask(shapes, size), label, id=f"{task.stem}/{len(regions)}")
            except BadEntry as error:
                log.skip(error.reason, f"{task}: {label!r}: {error.detail}")
                incomplete.add(label)
                continue
            regions.append(region)
            texts = [shape.get("description") for shape in shapes]
            texts = tuple(dict.fromkeys(text.strip() for text in texts if isinstance(text, str) and text.strip()))
            if texts:
                queries.append(Query(texts, (len(regions) - 1,), id=region.id))
        yield Record(
            path,
            size,
            task.stem,
            tuple(regions),
            tuple(queries),
            present=frozenset(region.category for region in regions) | incomplete,
            incomplete_classes=frozenset(incomplete),
        )

    def _image(self, task: Path, entry: dict[str, Any]) -> tuple[str, tuple[int, int]]:
        size = size_of(entry.get("imageHeight"), entry.get("imageWidth"))
        name = str(entry.get("imagePath") or f"{task.stem}.jpg").replace("\\", "/")
        beside = task.parent / name
        # Labelled elsewhere, a path may be that of another machine; the image then usually lies beside its JSON.
        return self.finder.find(str((beside if beside.is_file() else task.parent / Path(name).name).absolute()), size)


def _objects(shapes: list[Any]) -> list[list[dict[str, Any]]]:
    """Shapes that belong together, in order of their first one."""
    objects: dict[Any, list[dict[str, Any]]] = {}
    for i, shape in enumerate(shapes):
        shape = shape if isinstance(shape, dict) else {}
        group = shape.get("group_id")
        key = ("alone", i) if group is None else (str(shape.get("label")), str(group))
        objects.setdefault(key, []).append(shape)
    return list(objects.values())


def _mask(shapes: list[dict[str, Any]], size: tuple[int, int]) -> Any:
    kinds = {shape.get("shape_type") or "polygon" for shape in shapes}
    if kinds <= {"polygon", "rectangle"}:
        return {"size": list(size), "polygons": [_polygon(shape) for shape in shapes]}
    masks = [_drawn(shape, size) for shape in shapes]
    return np.logical_or.reduce(masks)


def _points(shape: dict[str, Any], least: int) -> np.ndarray:
    try:
        points = np.asarray(shape.get("points"), dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < least or not np.isfinite(points).all():
            raise ValueError(f"shape {points.shape}")
    except (TypeError, ValueError) as error:
        raise BadEntry(BAD_MASK, f"points {abridged(shape.get('points'))}: expected {least} points [x, y]") from error
    return points


def _polygon(shape: dict[str, Any]) -> list[float]:
    if shape.get("shape_type") == "rectangle":
        # Two opposite corners; some tools write all four.
        points = _points(shape, 2)
        (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    return _points(shape, 3).ravel().tolist()


def _drawn(shape: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    kind = shape.get("shape_type") or "polygon"
    if kind in ("polygon", "rectangle"):
        try:
            return load_mask(polygons_to_rle([_polygon(shape)], size))
        except ValueError as error:
            raise BadEntry(BAD_MASK, str(error)) from error
    if kind == "circle":  # its centre and a point of its border
        (x, y), border = _points(shape, 2)[:2]
        radius = np.hypot(*(border - (x, y)))
        rows, columns = np.ogrid[: size[0], : size[1]]
        return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
    if kind == "mask":  # a PNG of the part of the image between two corners, the second one included
        corner = np.rint(_points(shape, 1)[0]).astype(int)
        try:
            part = load_mask(_image_of(shape.get("mask")))
        except (ValueError, OSError) as error:
            raise BadEntry(BAD_MASK, f"mask: {error}") from error
        return pasted(part, (int(corner[1]), int(corner[0])), size)
    raise BadEntry(BAD_MASK, f"shape_type is {kind!r}: expected polygon, rectangle, circle or mask")


def _image_of(data: Any):
    from PIL import Image

    try:
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    except (TypeError, binascii.Error) as error:
        raise ValueError(f"{abridged(data)} is no base64") from error


def pasted(part: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """A mask of the image's size with `part` at `corner` (row, column); what reaches beyond the image is cut off."""
    whole = np.zeros(size, bool)
    row, column = corner
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + part.shape[0], size[0]), min(column + part.shape[1], size[1])
    if top < bottom and left < right:
        whole[top:bottom, left:right] = part[top - row : bottom - row, left - column : right - column]
    return whole
