"""The user's own CVAT export: one XML with polygons, masks, boxes and ellipses, of images or of a video's tracks.

Contract: one record per `<image>` ("CVAT for images 1.1") or per frame ("CVAT for video 1.1", see `cvat_tracks`); of an
image, only its byte range is kept until it is read. A split is the subset of that name, or the file of that name.
Shapes with the same label and group are one region. An attribute called expression, description or caption is an
expression for its shape. Entities of a document type are not expanded.
"""

from __future__ import annotations

import codecs
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from himtok_plugin.data.annotation_values import annotated_size
from himtok_plugin.data.byte_ranges import Range
from himtok_plugin.data.polygon_checks import convert_good_parts
from himtok_plugin.data.records import Box, Query, Record, Region, class_names
from himtok_plugin.data.skip_log import BAD_BOX, BAD_ENTRY, BAD_MASK, MISSING_IMAGE, NOT_UTF8, AnnotationError, SkipLog
from himtok_plugin.files.finder import find_in_any_case
from himtok_plugin.files.splits import find_split, split_names
from himtok_plugin.files.text import read_text
from himtok_plugin.masks.polygons import polygons_to_mask
from himtok_plugin.masks.rle import rle_to_mask
from himtok_plugin.validation import abridged, counted

from .cvat_tracks import FrameItem, interpolate_track, match_frames, read_tracks
from .image_finder import ImageFinder
from .label_me import paste_mask
from .reader import ALL, IMAGE_SUFFIXES, Reader, Source, find_path, list_files

EXPRESSION_ATTRIBUTES = ("expression", "description", "caption")
_DECLARATION_BYTES = 200  # an XML declaration is at the beginning of its file
NOT_READ = "track of a video beside <image> elements is not read"
TAG = "tag of a whole image has no shape"
NO_SUBSET = {"", "default"}  # CVAT's names for no subset


class CvatReader(Reader):
    """`annotations.xml` and `images/`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        names = split_names(source.split)
        if source.split == ALL:
            self.path = self.annotation_file("annotations.xml", *self.only_file(".xml"))
        else:
            forms = ("{}.xml", "{}/annotations.xml", "annotations_{}.xml", "annotations/{}.xml")
            own = [form.format(name) for name in names for form in forms]
            self.path = self.annotation_file(*own, "annotations.xml", *self.only_file(".xml"))
            # Without subsets in it, a file of that name, or the one given as `annotations`, is the split.
            of_split = [find_in_any_case(source.root, name) for name in own]
            self.is_of_split = source.annotations is not None or self.path in of_split
        self.frame_size: tuple[int, int] | None = None
        self.encoding = find_xml_encoding(self.path)
        self.finder = ImageFinder(source, ("images", "", *(f"images/{name}" for name in names), *names))

    def list_items(self, log: SkipLog) -> Sequence[Range | FrameItem]:
        images, split = image_ranges(self.path), self.source.split
        subsets = {subset for _, subset in images} - NO_SUBSET
        if split != ALL and (subsets or not self.is_of_split):
            images = [image for image in images if find_split(image[1].strip(), (split,))]
            if not images:
                found = f"one of {', '.join(sorted(subsets))}" if subsets else "a file named with --annotations"
                raise ValueError(f"--split: got {split!r}, expected all or {found}, for {self.path}")
        if images:
            if b"<track" in self.path.read_bytes():
                log.add_all(
                    NOT_READ, [f"{self.path}: track {track.id}" for track in read_tracks(self.path, log).tracks]
                )
            return [where for where, _ in images]
        return self._list_frames(log)

    def _list_frames(self, log: SkipLog) -> list[FrameItem]:
        """The frames of a video in which an object is visible, and those without any."""
        video = read_tracks(self.path, log)
        shapes: dict[int, list[bytes]] = {}
        for track in video.tracks:
            for number, shape in interpolate_track(track, video, log):
                shapes.setdefault(number, []).append(ElementTree.tostring(shape))
        if video.tracks and not shapes:
            raise ValueError(
                f"{self.path}: has {counted(len(video.tracks), 'track')}, expected one that is visible in a frame"
            )
        if not shapes:
            return []
        folder = find_path(self.source.root, self.source.images, ("images", "."), "images")
        known = match_frames(video, list_files(folder, IMAGE_SUFFIXES), list(shapes), self.path)
        log.notes.append(
            f"{self.path}: {counted(len(video.tracks), 'track')} of a video: objects are in "
            f"{counted(len(shapes), 'frame')}, those between "
            f"key frames included; frame {min(known)} is {known[min(known)].name}"
        )
        missing = sorted(set(shapes) - set(known))
        log.add_all(MISSING_IMAGE, [f"{self.path}: frame {number}" for number in missing])
        self.frame_size = video.size
        return [
            FrameItem(number, str(path.absolute()), tuple(shapes.get(number, ())))
            for number, path in sorted(known.items())
        ]

    def _frame_record(self, item: FrameItem, log: SkipLog) -> Record:
        path, size = self.finder.find(item.image, self.frame_size)
        frame = ElementTree.Element("image", {"id": str(item.number)})
        frame.extend(map(ElementTree.fromstring, item.shapes))
        return self._record(frame, path, size, log)

    def read_records(self, item: Range | FrameItem, log: SkipLog) -> Iterator[Record]:
        if isinstance(item, FrameItem):
            yield self._frame_record(item, log)
            return
        image = _read_element(self.path, item, self.encoding)
        annotated = annotated_size(image.get("height"), image.get("width"), log, self.path.name)
        path, size = self.finder.find(self._name(image), annotated)
        yield self._record(image, path, size, log)

    def _record(self, image: ElementTree.Element, path: str, size: tuple[int, int], log: SkipLog) -> Record:
        regions: list[Region] = []
        queries = []
        incomplete: set[str | None] = set()
        for tag in image.findall("tag"):
            log.add_unused(TAG, f"image {image.get('id')}: {tag.get('label')}")
        for shapes in _group_elements(image):
            label = shapes[0].get("label")
            id = f"{image.get('id')}/{len(regions)}"
            try:
                region = _elements_to_region(shapes, size, id, log)
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
        return Record(path, size, id, tuple(regions), tuple(queries), present=present, incomplete_classes=named)

    def _name(self, image: ElementTree.Element) -> str:
        """The image's name, in the folder of its subset if it lies there: two subsets may have images of one name."""
        name, subset = image.get("name", ""), image.get("subset")
        of_subset = f"{subset}/{name}"
        return of_subset if subset and (self.finder.has_image(of_subset) or not self.finder.has_image(name)) else name


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
        if find_xml_encoding(path).upper() == "UTF-8":
            read_text(path)  # an error that says more, if it is text in another encoding
        raise ValueError(f"{path}: is not XML ({error})") from error
    named = {name.strip() for name in of_tasks}
    of_all = named.pop() if len(named) == 1 else ""
    return [(where, subset or of_all) for where, subset in found]


def find_xml_encoding(path: Path) -> str:
    """The encoding of an XML file, by its byte order mark or its declaration; UTF-8 without both."""
    with open(path, "rb") as file:
        head = file.read(_DECLARATION_BYTES)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16-LE" if head.startswith(codecs.BOM_UTF16_LE) else "UTF-16-BE"
    declared = re.match(rb"(?:\xef\xbb\xbf)?<\?xml[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9._-]+)", head)
    return declared[1].decode("ascii") if declared else "UTF-8"


def _read_element(path: Path, where: Range, encoding: str) -> ElementTree.Element:
    closing = "</image>".encode(encoding)
    with open(path, "rb") as file:
        file.seek(where[0])
        data = file.read(where[1] + len(closing))
    # Expat reports where the closing tag begins, but for `<image .../>` where it ends.
    text = data if data.endswith(closing) else data[: where[1]]
    try:
        return ElementTree.fromstring(text.decode(encoding))
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


def _elements_to_region(shapes: list[ElementTree.Element], size: tuple[int, int], id: str, log: SkipLog) -> Region:
    label = shapes[0].get("label")
    where = f"object {id}, {label!r}"
    if all(shape.tag == "polygon" for shape in shapes):
        polygons = convert_good_parts(_element_to_polygon, shapes, log, where)
        return Region({"size": list(size), "polygons": polygons}, label, id=id)
    if len(shapes) == 1 and shapes[0].tag == "box":
        return Region(None, label, _bounding_box(shapes[0]), id=id)
    masks = convert_good_parts(partial(_rasterise_element, size=size), shapes, log, where)
    return Region(np.logical_or.reduce(masks), label, id=id)


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
            return polygons_to_mask([_element_to_polygon(shape)], size)
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
