"""The user's own LabelMe folder: images with a JSON of the same name beside each.

Contract: one record per JSON. A shape is a polygon, rectangle, circle or mask; shapes with the same label and group are
one region. A shape's `description`, if it has one, is an expression for its region.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.data.annotation_values import annotated_size
from himtok_plugin.data.byte_ranges import parse_json_file
from himtok_plugin.data.polygon_checks import convert_good_parts
from himtok_plugin.data.records import Query, Record, Region, class_names
from himtok_plugin.data.skip_log import BAD_ENTRY, BAD_MASK, AnnotationError, SkipLog
from himtok_plugin.files.splits import split_names
from himtok_plugin.masks import load_mask
from himtok_plugin.masks.polygons import polygons_to_mask
from himtok_plugin.masks.rle import MAX_PIXELS
from himtok_plugin.validation import abridged, counted, finite_numbers

from .image_finder import ImageFinder
from .reader import Reader, Source, list_files


class LabelMeReader(Reader):
    """`<root>/**/*.json`; a split is a folder below the root."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.folder = self.annotation_file(*(split_names(source.split) if source.split != "all" else ["."]))
        self.finder = ImageFinder(source, (str(self.folder.absolute()), ""))

    def list_items(self, log: SkipLog) -> Sequence[Path]:
        files = list_files(self.folder, (".json",), log)
        if not files:
            raise ValueError(f"{self.folder}: holds no *.json, expected a LabelMe folder")
        return files

    def read_records(self, item: Path, log: SkipLog) -> Iterator[Record]:
        entry = parse_json_file(item)
        if not isinstance(entry, dict) or not isinstance(entry.get("shapes"), list):
            raise AnnotationError(BAD_ENTRY, f"{item}: has no shapes: expected a LabelMe file")
        try:
            path, size = self._image(item, entry, log)
        except AnnotationError as error:
            raise AnnotationError(error.reason, f"{item}: {error.detail}") from error
        regions: list[Region] = []
        queries = []
        incomplete: set[str] = set()
        for shapes in _group_shapes(entry["shapes"]):
            label = _label(shapes[0])
            try:
                mask = _shapes_to_mask(shapes, size, log, f"{item}: {label!r}")
                region = Region(mask, label, id=f"{item.stem}/{len(regions)}")
            except AnnotationError as error:
                log.add(error.reason, f"{item}: {label!r}: {error.detail}")
                incomplete.update(filter(None, [label]))
                continue
            regions.append(region)
            descriptions = [shape.get("description") for shape in shapes]
            texts = dict.fromkeys(text.strip() for text in descriptions if isinstance(text, str) and text.strip())
            if texts:
                queries.append(Query(tuple(texts), (len(regions) - 1,), id=region.id))
        yield Record(
            path,
            size,
            item.stem,
            tuple(regions),
            tuple(queries),
            present=class_names(regions) | incomplete,
            incomplete_classes=frozenset(incomplete),
        )

    def _image(self, annotation: Path, entry: dict[str, Any], log: SkipLog) -> tuple[str, tuple[int, int]]:
        size = annotated_size(entry.get("imageHeight"), entry.get("imageWidth"), log, annotation.name)
        return self.finder.find(entry.get("imagePath") or annotation.stem, size, near=annotation.parent)


def _label(shape: dict[str, Any]) -> str | None:
    """The class of a shape; None if it has no label."""
    label = shape.get("label")
    return None if label is None else " ".join(str(label).split()) or None


def _group_shapes(shapes: list[Any]) -> list[list[dict[str, Any]]]:
    """The shapes of each object, ordered by the first one."""
    objects: dict[Any, list[dict[str, Any]]] = {}
    for i, shape in enumerate(shapes):
        shape = shape if isinstance(shape, dict) else {}
        group = shape.get("group_id")
        key = ("alone", i) if group is None else (str(shape.get("label")), str(group))
        objects.setdefault(key, []).append(shape)
    return list(objects.values())


def _shapes_to_mask(shapes: list[dict[str, Any]], size: tuple[int, int], log: SkipLog, where: str) -> Any:
    kinds = {shape.get("shape_type") or "polygon" for shape in shapes}
    if kinds <= {"polygon", "rectangle"}:
        return {"size": list(size), "polygons": convert_good_parts(_shape_to_polygon, shapes, log, where)}
    masks = convert_good_parts(partial(_rasterise_shape, size=size), shapes, log, where)
    return np.logical_or.reduce(masks)


def _parse_points(shape: dict[str, Any], least: int) -> np.ndarray:
    try:
        points = np.array([finite_numbers(point) for point in shape.get("points") or ()])
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < least or np.abs(points).max() > MAX_PIXELS:
            raise ValueError(f"shape {points.shape}")
    except (TypeError, ValueError) as error:
        raise AnnotationError(
            BAD_MASK, f"points {abridged(shape.get('points'))}: expected {counted(least, 'point')} [x, y] or more"
        ) from error
    return points


def _shape_to_polygon(shape: dict[str, Any]) -> list[float]:
    if shape.get("shape_type") == "rectangle":
        # Two opposite corners; some tools write all four corners.
        points = _parse_points(shape, 2)
        (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return [x1, y1, x2, y1, x2, y2, x1, y2]
    # One or two points are no object: the tasks leave them out.
    return _parse_points(shape, 1).ravel().tolist()


def _rasterise_shape(shape: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    kind = shape.get("shape_type") or "polygon"
    if kind in ("polygon", "rectangle"):
        try:
            return polygons_to_mask([_shape_to_polygon(shape)], size)
        except ValueError as error:
            raise AnnotationError(BAD_MASK, str(error)) from error
    if kind == "circle":  # its centre and a point on the circle
        (x, y), border = _parse_points(shape, 2)[:2]
        radius = np.hypot(*(border - (x, y)))
        rows, columns = np.ogrid[: size[0], : size[1]]
        return (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= radius**2
    if kind == "mask":  # a PNG for the part of the image between two corners, both inclusive
        corner = np.rint(_parse_points(shape, 1)[0]).astype(int)
        try:
            part = load_mask(_decode_image(shape.get("mask")))
        except Exception as error:  # PIL's readers raise nearly anything on damaged files, and on very large ones
            raise AnnotationError(BAD_MASK, f"mask: {error}") from error
        return paste_mask(part, (int(corner[1]), int(corner[0])), size)
    raise AnnotationError(BAD_MASK, f"shape_type is {kind!r}: expected polygon, rectangle, circle or mask")


def _decode_image(data: Any) -> Image.Image:
    try:
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    except (TypeError, binascii.Error) as error:
        raise ValueError(f"{abridged(data)} is not base64") from error


def paste_mask(part: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """A mask of the image's size with `part` at `corner` (row, column), clipped to the image."""
    whole = np.zeros(size, bool)
    row, column = corner
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + part.shape[0], size[0]), min(column + part.shape[1], size[1])
    if top < bottom and left < right:
        whole[top:bottom, left:right] = part[top - row : bottom - row, left - column : right - column]
    return whole
