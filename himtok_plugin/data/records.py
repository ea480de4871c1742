"""The annotations of one image in a form that all formats share: regions, expressions, dialogues.

The readers in `formats/` create records, the tasks in `tasks/` turn them into samples.
Contract: a `Record` is created and used in one process. Its masks are rasterised by `region_to_rle`, when a task needs
them. Annotations that cannot be used are added to a `SkipLog`, which counts them, or stops a strict run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from himtok_plugin.masks import load_mask
from himtok_plugin.masks.rle import MAX_PIXELS, check_size, mask_to_rle, rle_to_mask
from himtok_plugin.validation import abridged, is_integer

Rle = dict[str, Any]
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels, the end exclusive

# Reasons for skipping an annotation; each is a key in the summary of a run.
MISSING_IMAGE = "image is missing"
WRONG_SIZE = "image has another size than its annotation"
UNREADABLE_IMAGE = "image cannot be read"
TURNED_IMAGE = "image is stored turned or mirrored (EXIF orientation)"
UNKNOWN_CATEGORY = "unknown category"
REPEATED_ID = "id occurs more than once"
UNKNOWN_ID = "id is not in the file"
BAD_MASK = "mask cannot be read"
EMPTY_MASK = "mask has no pixels"
CROWD = "crowd: no single object"
NOT_UTF8 = "text is not UTF-8"
BAD_TEXT = "text is empty or holds a placeholder"
NOT_JSON = "is not JSON"
BAD_ENTRY = "entry lacks a field"
BAD_BOX = "box is not x1 < x2, y1 < y2 within its image"
MASKS_DO_NOT_FIT = "masks do not fit the placeholders of the text"
TOO_MANY = "more objects than max_masks"


class AnnotationError(ValueError):
    """An annotation that cannot be used.

    Attributes:
        reason: one of the constants above.
        detail: what was found, and where.
        logged: whether it is in a `SkipLog`: several tasks may need the same bad mask.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.logged = reason, detail, False


class StrictError(ValueError):
    """The first skipped annotation of a strict run."""


class SkipLog:
    """The annotations that were skipped; in a strict run the first one is an error.

    Attributes:
        counts: reason -> number of skipped annotations.
        entries: (reason, detail) of each, in order.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self.entries: list[tuple[str, str]] = []

    def add(self, reason: str, detail: str) -> None:
        """Count a skipped annotation.

        Raises:
            StrictError: in a strict run.
        """
        if self.strict:
            raise StrictError(f"{detail}: {reason}")
        self.counts[reason] += 1
        self.entries.append((reason, detail))

    def add_error(self, error: AnnotationError, where: str) -> None:
        """Count an annotation that raised `error`, unless this error is counted already."""
        if not error.logged:
            error.logged = True
            self.add(error.reason, f"{where}: {error.detail}")

    def add_all(self, reason: str, details: Sequence[str]) -> None:
        for detail in details:
            self.add(reason, detail)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A region as the pixels with certain labels in a label map, which all regions of an image share.

    Attributes:
        values: integer (h, w).
        labels: the labels of this region.
    """

    values: np.ndarray
    labels: tuple[int, ...]

    def mask(self) -> np.ndarray:
        if len(self.labels) == 1:
            return self.values == self.labels[0]
        return np.isin(self.values, self.labels)


@dataclass(frozen=True, eq=False)
class PixelPolygons:
    """Polygons with their border, corners truncated to whole pixels, as ReasonSeg's own code draws them.

    Attributes:
        painted: (points [[x, y], …], value) in painting order, later ones on top. One point is a pixel, two are a line.
        value: the value of this region's pixels.
    """

    painted: tuple[tuple[Sequence[Sequence[float]], int], ...]
    value: int

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        canvas = Image.new("L", (size[1], size[0]))
        draw = ImageDraw.Draw(canvas)
        for points, value in self.painted:
            corners = [(int(x), int(y)) for x, y in points]
            if len(corners) < 2:
                draw.point(corners, fill=value)
            elif len(corners) == 2:
                draw.line(corners, fill=value)
            else:
                draw.polygon(corners, fill=value, outline=value)
        return np.asarray(canvas) == self.value


# A path or array as `load_mask` takes it, RLE, COCO polygons, `LabelMap` or `PixelPolygons`.
RegionMask = Any


@dataclass(frozen=True, eq=False)
class Region:
    """An annotated part of an image.

    Attributes:
        mask: None for a box without a mask.
        category: the name of its class; None if it has none.
        box: as annotated; None: the bounding box of the mask.
        crowd: a group of objects under one annotation (COCO's `iscrowd`).
        stuff: an uncountable class, such as sky, or a class annotated as a whole instead of object by object.
        id: its id in the dataset.
    """

    mask: RegionMask = None
    category: str | None = None
    box: Box | None = None
    crowd: bool = False
    stuff: bool = False
    id: str = ""


@dataclass(frozen=True, eq=False)
class Query:
    """Expressions that refer to the same regions.

    Attributes:
        expressions: at least one.
        targets: indices into the record's regions; empty: nothing in the image matches.
        sentence: whether they are whole sentences ("What can …?"), which become the question unchanged.
        ignore: the ignored region: its pixels are left out of the score.
    """

    expressions: tuple[str, ...]
    targets: tuple[int, ...]
    sentence: bool = False
    ignore: RegionMask = None
    id: str = ""


@dataclass(frozen=True, eq=False)
class GroundedText:
    """Text in which phrases refer to regions: a piece is plain text, or (phrase, indices of its regions)."""

    pieces: tuple[str | tuple[str, tuple[int, ...]], ...]
    question: str | None = None
    id: str = ""


@dataclass(frozen=True, eq=False)
class Dialogue:
    """A question and its answer.

    Attributes:
        options: the options of a multiple-choice question, in the order of their letters.
        masks: for each `<mask>` in question, options and answer, the index of its region.
        pool: the pool of prompts that states the form of the answer; None: the question is asked unchanged.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()
    masks: tuple[int, ...] = ()
    pool: str | None = None
    id: str = ""


@dataclass(frozen=True, eq=False)
class Record:
    """An image and its annotations.

    Attributes:
        image: its path, as written to samples; None if it is not a file of its own (it lies in an archive).
        size: (h, w); None if the reader has no image size.
        image_id: its id in the dataset.
        present: the classes that the dataset annotates in this image; None: unknown.
        absent: the classes that the dataset states to be absent; None: all that are not present.
        incomplete_classes: the classes with objects that may have no mask here, so that no question may be about all
            of them.
        void: unlabelled pixels.
    """

    image: str | None
    size: tuple[int, int] | None
    image_id: str
    regions: tuple[Region, ...] = ()
    queries: tuple[Query, ...] = ()
    grounded_texts: tuple[GroundedText, ...] = ()
    dialogues: tuple[Dialogue, ...] = ()
    present: frozenset[str] | None = None
    absent: frozenset[str] | None = None
    incomplete_classes: frozenset[str] = frozenset()
    void: RegionMask = None
    _encoded: dict[int, Any] = field(default_factory=dict, init=False, repr=False)
    _objects: list[int] = field(default_factory=list, init=False, repr=False)

    def objects(self, log: SkipLog) -> list[int]:
        """The indices of the regions that are single objects with a mask. The first call logs crowds as skipped."""
        if not self._objects and self.regions:
            for i, region in enumerate(self.regions):
                if region.crowd:
                    log.add(CROWD, f"image {self.image_id}, region {region.id or i}")
                elif region.mask is not None and not region.stuff:
                    self._objects.append(i)
            self._objects.append(-1)  # marks that this was done
        return self._objects[:-1]

    def rle(self, index: int) -> Rle:
        """The region's mask, rasterised once.

        Raises:
            AnnotationError: it cannot be read, or has no pixels.
        """
        if index not in self._encoded:
            try:
                self._encoded[index] = region_to_rle(self.regions[index].mask, self.size)
            except AnnotationError as error:
                self._encoded[index] = error
        found = self._encoded[index]
        if isinstance(found, AnnotationError):
            raise found.with_traceback(None)
        return found

    def box(self, index: int) -> Box:
        """The region's box as annotated, clipped to the image, or else its mask's bounding box."""
        box = self.regions[index].box
        if box is None:
            x, y, w, h = coco.toBbox(self.rle(index)).tolist()
            return (x, y, x + w, y + h)
        return clip_box(box, self.size)


def class_names(regions: Sequence[Region]) -> frozenset[str]:
    """The classes of some regions."""
    return frozenset(region.category for region in regions if region.category)


def clip_box(box: Sequence[float], size: tuple[int, int] | None) -> Box:
    """Clip a box to its image.

    Raises:
        AnnotationError: not four numbers, or nothing of it is within the image.
    """
    try:
        x1, y1, x2, y2 = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise AnnotationError(BAD_BOX, f"got {abridged(box)}") from error
    if size is not None:
        h, w = size
        x1, x2, y1, y2 = max(x1, 0.0), min(x2, float(w)), max(y1, 0.0), min(y2, float(h))
    if not (x1 < x2 and y1 < y2):  # false for NaN as well
        raise AnnotationError(BAD_BOX, f"got {abridged(list(box))} in an image of (h, w) = {size}")
    return x1, y1, x2, y2


def region_to_rle(mask: RegionMask, size: tuple[int, int] | None) -> Rle:
    """Rasterise a region's mask to compressed COCO RLE.

    Args:
        mask: see `Region`.
        size: (h, w) of the image; None: the mask's own.
    Raises:
        AnnotationError: unreadable, of another size, or without a pixel.
    """
    try:
        rle = _rasterise(mask, size)
    except AnnotationError:
        raise
    except ValueError as error:
        raise AnnotationError(BAD_MASK, str(error)) from error
    if not int(coco.area(rle)):
        raise AnnotationError(EMPTY_MASK, f"{type(mask).__name__} of (h, w) = {tuple(rle['size'])}")
    return rle


def union_rles(rles: Sequence[Rle]) -> Rle:
    """The union of one or more masks of the same size."""
    merged = coco.merge(list(rles))
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}


def _rasterise(mask: RegionMask, size: tuple[int, int] | None) -> Rle:
    if isinstance(mask, LabelMap):
        found = mask.mask()
    elif isinstance(mask, PixelPolygons):
        if size is None:
            raise ValueError("polygons have no size: expected size [h, w]")
        found = mask.mask(size)
    elif isinstance(mask, dict) and "polygons" in mask:
        own = mask.get("size") or size
        if own is None:
            raise ValueError(f"polygons {abridged(mask['polygons'])} have no size: expected size [h, w]")
        if size is not None and check_size(own) != tuple(size):
            raise ValueError(
                f"polygons have size (h, w) = {tuple(own)}: expected {tuple(size)}, the size of their image"
            )
        return polygons_to_rle(mask["polygons"], own)
    elif isinstance(mask, dict) and "counts" in mask:
        own = mask.get("size", size)
        if own is None:
            raise ValueError("RLE has no size: expected size [h, w]")
        found = rle_to_mask(mask["counts"], own)
    else:
        found = load_mask(mask)
    if size is not None and found.shape != tuple(size):
        raise ValueError(f"mask has size (h, w) = {found.shape}: expected {tuple(size)}, the size of its image")
    return mask_to_rle(found)


def polygons_to_rle(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> Rle:
    """The union of COCO polygons [[x1, y1, x2, y2, …], …] as RLE, filled as pycocotools fills them.

    Points may lie outside the image, by at most its width or height; the polygon is clipped.

    Raises:
        ValueError: no polygons, fewer than three points in one, or points farther away.
    """
    h, w = check_size(size)
    if not isinstance(polygons, Sequence) or isinstance(polygons, str | bytes) or not polygons:
        raise ValueError(f"polygons is {abridged(polygons)}: expected a list of lists [x1, y1, x2, y2, ...]")
    checked = []
    for i, polygon in enumerate(polygons):
        try:
            flat = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"polygons[{i}] is {abridged(polygon)}: expected numbers [x1, y1, x2, y2, ...]") from error
        if flat.ndim != 1 or flat.size % 2 or flat.size < 6:
            raise ValueError(f"polygons[{i}] is {abridged(polygon)}: expected x, y of at least three points")
        checked.append(flat)
    points = np.concatenate(checked).reshape(-1, 2)
    (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    # pycocotools samples the sides in steps of 1/5 pixel with 32-bit counters: far points cost memory, or overflow.
    far = not (x1 >= -w and y1 >= -h and x2 <= 2 * w and y2 <= 2 * h)  # true for NaN as well
    if far or max(x2, y2) > MAX_PIXELS:
        raise ValueError(f"polygons reach from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}): expected 0 <= x <= {w}, y <= {h}")
    runs = coco.frPyObjects([polygon.tolist() for polygon in checked], h, w)
    merged = coco.merge(runs) if len(runs) > 1 else runs[0]
    return {"size": [h, w], "counts": merged["counts"].decode("ascii")}


def parse_size(height: Any, width: Any) -> tuple[int, int]:
    """(h, w) from two fields of an annotation; whole floats, which some exports write, are accepted.

    Raises:
        AnnotationError: not two positive integers.
    """
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in (height, width)]
    try:
        if not all(is_integer(value) for value in values):
            raise ValueError(f"got height {abridged(height)}, width {abridged(width)}")
        return check_size(values)
    except ValueError as error:
        raise AnnotationError(WRONG_SIZE, str(error)) from error
