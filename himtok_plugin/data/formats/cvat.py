"""The user's own CVAT export, "CVAT for images 1.1": one XML with polygons, masks, boxes and ellipses.

Contract: one record per `<image>`; of each, only its byte range is kept until it is read. A split is the subset of that
name, or the file of that name. Shapes with the same label and group are one region. An attribute called expression,
description or caption is an expression for its shape. Entities of a document type are not expanded.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from himtok_plugin.data.byte_ranges import Range
from himtok_plugin.data.records import (
    BAD_BOX,
    BAD_ENTRY,
    BAD_MASK,
    NOT_UTF8,
    AnnotationError,
    Box,
    Query,
    Record,
    Region,
    SkipLog,
    class_names,
    parse_size,
    polygons_to_rle,
)
from himtok_plugin.masks import load_mask
from himtok_plugin.masks.rle import rle_to_mask
from himtok_plugin.validation import abridged

from .label_me import paste_mask
from .reader import ImageFinder, Reader, Source, split_names

EXPRESSION_ATTRIBUTES = ("expression", "description", "caption")
NO_SUBSET = {"", "default"}  # CVAT's names for no subset


class CvatReader(Reader):
    """`annotations.xml` and `images/`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        names = split_names(source.split)
        if source.split == "all":
            self.path = self.annotation_file("annotations.xml", *self.only_file(".xml"))
        else:
            forms = ("{}.xml", "{}/annotations.xml", "annotations_{}.xml", "annotations/{}.xml")
            own = [form.format(name) for name in names for form in forms]
            self.path = self.annotation_file(*own, "annotations.xml", *self.only_file(".xml"))
            # Without subsets in it, a file of that name, or the one given as `annotations`, is the split.
            named = [source.root / name for name in own] if source.annotations is None else [self.path]
            self.is_of_split = self.path in named
        self.finder = ImageFinder(source, ("images", "", *(f"images/{name}" for name in names), *names))

    def list_items(self, log: SkipLog) -> Sequence[Range]:
        images, split = image_ranges(self.path), self.source.split
        subsets = {subset for _, subset in images} - NO_SUBSET
        if split != "all" and (subsets or not self.is_of_split):
            images = [image for image in images if image[1].lower() in split_names(split)]
            if not images:
                found = f"one of {', '.join(sorted(subsets))}" if subsets else "a file named with --annotations"
                raise ValueError(f"--split: got {split!r}, expected all or {found}, for {self.path}")
        return [where for where, _ in images]

    def read_records(self, item: Range, log: SkipLog) -> Iterator[Record]:
        image = _read_element(self.path, item)
        try:
            width, height = (int(image.get(key, "")) for key in ("width", "height"))
        except ValueError as error:
            raise AnnotationError(BAD_ENTRY, f"image {image.get('id')}: width and height: {error}") from error
        path, size = self.finder.find(self._name(image), parse_size(height, width))
        regions: list[Region] = []
        queries = []
        incomplete: set[str | None] = set()
        for shapes in _group_elements(image):
            label = shapes[0].get("label")
            id = f"{image.get('id')}/{len(regions)}"
            try:
                region = _elements_to_region(shapes, size, id)
            except AnnotationError as error:
                log.add(error.reason, f"image {image.get('id')}, {label!r}: {error.detail}")
                incomplete.add(label)
                continue
            regions.append(region)
            if region.mask is None:
                incomplete.add(label)
            if texts := _element_expressions(shapes):
                queries.append(Query(texts, (len(regions) - 1,), id=id))
        named = frozenset(label for label in incomplete if label)
        present = class_names(regions) | named
        id = str(image.get("id"))
        yield Record(path, size, id, tuple(regions), tuple(queries), present=present, incomplete_classes=named)

    def _name(self, image: ElementTree.Element) -> str:
        """The image's name, in the folder of its subset if it lies there: two subsets may have images of one name."""
        name = image.get("name", "")
        of_subset = f"{image.get('subset')}/{name}"
        return of_subset if self.finder.has_image(of_subset) else name


def image_ranges(path: Path) -> list[tuple[Range, str]]:
    """(byte range, subset) of each `<image>` element; without a subset of its own, it has its CVAT task's.

    Raises:
        ValueError: not XML, truncated, or with a document type.
    """
    found: list[tuple[Range, str]] = []
    begins: list[tuple[int, str]] = []
    of_tasks: list[str] = []
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(name: str, attributes: dict[str, str]) -> None:
        if name == "image":
            begins.append((parser.CurrentByteIndex, attributes.get("subset", "")))
        elif name == "subset":
            of_tasks.append("")
            parser.CharacterDataHandler = text

    def text(data: str) -> None:
        of_tasks[-1] += data

    def end(name: str) -> None:
        parser.CharacterDataHandler = None
        if name == "image" and begins:
            begin, subset = begins.pop()
            found.append(((begin, parser.CurrentByteIndex - begin), subset))

    def refuse(*_: Any) -> None:
        raise ValueError(f"{path}: has a document type: expected CVAT's plain XML")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    try:
        with open(path, "rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise ValueError(f"{path}: is not XML ({error})") from error
    named = {name.strip() for name in of_tasks}
    of_all = named.pop() if len(named) == 1 else ""
    return [(where, subset or of_all) for where, subset in found]


def _read_element(path: Path, where: Range) -> ElementTree.Element:
    closing = b"</image>"
    with open(path, "rb") as file:
        file.seek(where[0])
        data = file.read(where[1] + len(closing))
    # Expat reports where the closing tag begins, but for `<image .../>` where it ends.
    text = data if data.endswith(closing) else data[: where[1]]
    try:
        return ElementTree.fromstring(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise AnnotationError(NOT_UTF8, f"{path} at byte {where[0]}: {error}") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise AnnotationError(BAD_ENTRY, f"{path} at byte {where[0]}: {error}") from error


def _group_elements(image: ElementTree.Element) -> list[list[ElementTree.Element]]:
    objects: dict[Any, list[ElementTree.Element]] = {}
    for i, shape in enumerate(image):
        if shape.tag in ("tag", "attribute"):
            continue
        group = shape.get("group_id")
        key = ("alone", i) if not group or group == "0" else (shape.get("label"), group)
        objects.setdefault(key, []).append(shape)
    return list(objects.values())


def _elements_to_region(shapes: list[ElementTree.Element], size: tuple[int, int], id: str) -> Region:
    label = shapes[0].get("label")
    if all(shape.tag == "polygon" for shape in shapes):
        return Region({"size": list(size), "polygons": [_element_to_polygon(shape) for shape in shapes]}, label, id=id)
    if len(shapes) == 1 and shapes[0].tag == "box":
        return Region(None, label, _bounding_box(shapes[0]), id=id)
    return Region(np.logical_or.reduce([_rasterise_element(shape, size) for shape in shapes]), label, id=id)


def _bounding_box(shape: ElementTree.Element) -> Box:
    """The axis-aligned box around a rectangle that is rotated about its centre."""
    x1, y1, x2, y2 = (_number_attribute(shape, key, BAD_BOX) for key in ("xtl", "ytl", "xbr", "ybr"))
    if not (angle := _rotation(shape, BAD_BOX)):
        return x1, y1, x2, y2
    x, y, dx, dy = (x1 + x2) / 2, (y1 + y2) / 2, (x2 - x1) / 2, (y2 - y1) / 2
    along, across = abs(np.cos(angle)), abs(np.sin(angle))
    reach_x, reach_y = float(dx * along + dy * across), float(dx * across + dy * along)
    return x - reach_x, y - reach_y, x + reach_x, y + reach_y


def _rotation(shape: ElementTree.Element, reason: str) -> float:
    """Radians, clockwise."""
    return float(np.deg2rad(_number_attribute(shape, "rotation", reason))) if shape.get("rotation") else 0.0


def _element_to_polygon(shape: ElementTree.Element) -> list[float]:
    text = shape.get("points", "")
    try:
        points = [float(value) for point in text.split(";") for value in point.split(",")]
    except ValueError as error:
        raise AnnotationError(BAD_MASK, f"points {abridged(text)}: expected x,y;x,y;x,y") from error
    return points


def _rasterise_element(shape: ElementTree.Element, size: tuple[int, int]) -> np.ndarray:
    try:
        if shape.tag == "polygon":
            return load_mask(polygons_to_rle([_element_to_polygon(shape)], size))
        if shape.tag == "mask":  # run lengths, row by row, within its box
            left, top, width, height = (
                int(_number_attribute(shape, key, BAD_MASK)) for key in ("left", "top", "width", "height")
            )
            runs = [int(run) for run in shape.get("rle", "").replace(",", " ").split()]
            # COCO's run lengths are in column order: decode the transposed mask.
            return paste_mask(rle_to_mask(runs, (width, height)).T, (top, left), size)
    except ValueError as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(BAD_MASK, f"{shape.tag}: {error}") from error
    if shape.tag == "ellipse":
        x, y, rx, ry = (_number_attribute(shape, key, BAD_MASK) for key in ("cx", "cy", "rx", "ry"))
        angle = _rotation(shape, BAD_MASK)
        rows, columns = np.ogrid[: size[0], : size[1]]
        dx, dy = columns + 0.5 - x, rows + 0.5 - y
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        return (along / max(rx, 1e-9)) ** 2 + (across / max(ry, 1e-9)) ** 2 <= 1
    expected = "no box in a group with other shapes" if shape.tag == "box" else "polygon, mask, box or ellipse"
    raise AnnotationError(BAD_MASK, f"<{shape.tag}>: expected {expected}")


def _number_attribute(shape: ElementTree.Element, key: str, reason: str) -> float:
    try:
        value = float(shape.get(key, ""))
    except ValueError as error:
        raise AnnotationError(
            reason, f"<{shape.tag}> {key} is {abridged(shape.get(key))}: expected a number"
        ) from error
    if not np.isfinite(value):
        raise AnnotationError(reason, f"<{shape.tag}> {key} is {value}: expected a finite number")
    return value


def _element_expressions(shapes: list[ElementTree.Element]) -> tuple[str, ...]:
    texts = [
        (attribute.text or "").strip()
        for shape in shapes
        for attribute in shape.findall("attribute")
        if str(attribute.get("name")).lower() in EXPRESSION_ATTRIBUTES
    ]
    return tuple(dict.fromkeys(text for text in texts if text))
