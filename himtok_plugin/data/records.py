"""What every annotation format is read as: images with regions, queries about them and dialogues, and what was skipped.

Purpose: the seam between readers (`formats/`) and task makers (`tasks/`), so that neither knows the other.
Contract: a `Record` is one image's worth of annotations, made and used up within one process. Masks are not rasterised
before `encode_region` asks for them. What cannot be used is told to the `SkipLog`, which counts it, or stops the run.
Does not know formats, prompts, rows and processes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from himtok_plugin.masks.rle import MAX_PIXELS, check_size, mask_to_rle, rle_to_mask
from himtok_plugin.masks.sources import load_mask
from himtok_plugin.validation import abridged, is_integer

Rle = dict[str, Any]
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels, the end exclusive

# Reasons that several readers have; each is a key of the summary.
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


class BadEntry(ValueError):
    """An entry that cannot be used: a reason of the list above, and what exactly was found.

    Attributes:
        told: whether a log knows of it; one bad mask may be asked for by several tasks.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.told = reason, detail, False


class StrictError(ValueError):
    """What a strict run stops at."""


class SkipLog:
    """Counts what is left out, by reason; under `strict` the first one is an error.

    Attributes:
        counts: reason -> how often.
        entries: (reason, where and what) in order.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self.entries: list[tuple[str, str]] = []

    def skip(self, reason: str, detail: str) -> None:
        """Tell of something left out.

        Raises:
            StrictError: in a strict run.
        """
        if self.strict:
            raise StrictError(f"{detail}: {reason}")
        self.counts[reason] += 1
        self.entries.append((reason, detail))

    def skip_entry(self, error: BadEntry, where: str) -> None:
        """Tell of an entry that cannot be used, the first time that it is met."""
        if not error.told:
            error.told = True
            self.skip(error.reason, f"{where}: {error.detail}")

    def skip_many(self, reason: str, details: Sequence[str]) -> None:
        for detail in details:
            self.skip(reason, detail)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A region as the pixels that have one of some values in a map shared by all regions of an image.

    Attributes:
        values: integer (h, w).
        labels: those that belong to the region.
    """

    values: np.ndarray
    labels: tuple[int, ...]

    def mask(self) -> np.ndarray:
        if len(self.labels) == 1:
            return self.values == self.labels[0]
        return np.isin(self.values, self.labels)


@dataclass(frozen=True, eq=False)
class PixelPolygons:
    """Polygons whose border belongs to them, corners cut down to whole pixels: how ReasonSeg's authors draw theirs.

    Attributes:
        painted: (points [[x, y], …], value) in the order of painting, later ones on top. One point is a pixel, two are
            a line.
        value: the one that makes up this region.
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


# A path or array as `load_mask` takes it, an RLE, COCO polygons, or one of the two above.
MaskOf = Any


@dataclass(frozen=True, eq=False)
class Region:
    """Something in an image.

    Attributes:
        mask: None for a box without a mask.
        category: name of its class, None if it has none.
        box: as annotated; None: that of the mask.
        crowd: several objects in one, of which no single one can be told.
        stuff: what has no single objects, such as sky; or a class of which only the whole is annotated.
        id: how its dataset calls it.
    """

    mask: MaskOf = None
    category: str | None = None
    box: Box | None = None
    crowd: bool = False
    stuff: bool = False
    id: str = ""


@dataclass(frozen=True, eq=False)
class Query:
    """Expressions that mean the same regions.

    Attributes:
        expressions: as people wrote them, at least one.
        targets: indices into the record's regions; none: nothing in the image is meant.
        sentence: whether they are whole sentences ("What can …?"), which are asked as they stand.
        ignore: pixels that count neither for nor against an answer.
    """

    expressions: tuple[str, ...]
    targets: tuple[int, ...]
    sentence: bool = False
    ignore: MaskOf = None
    id: str = ""


@dataclass(frozen=True, eq=False)
class Grounded:
    """Text with places that are regions: `pieces` alternate between text and, for a phrase, (phrase, indices)."""

    pieces: tuple[str | tuple[str, tuple[int, ...]], ...]
    question: str | None = None
    id: str = ""


@dataclass(frozen=True, eq=False)
class Dialogue:
    """A question and its answer; `<mask>` in either stands for `masks`, in order.

    Attributes:
        options: of a multiple choice, by their letters' order.
        masks: indices into the record's regions.
        pool: of prompts that say in which form to answer, None: the question stands as it is.
    """

    question: str
    answer: str
    options: tuple[str, ...] = ()
    masks: tuple[int, ...] = ()
    pool: str | None = None
    id: str = ""


@dataclass(frozen=True, eq=False)
class Record:
    """An image and all that is said of it.

    Attributes:
        image: path as it goes into rows; None where there is none, or where it lies in an archive.
        size: (h, w).
        image_id: how its dataset calls it.
        present: names of all classes that are in the image as far as its dataset tells; None: it does not tell.
        absent: names that the dataset says are not; None: all that are not present.
        incomplete_classes: names of classes of which the image may show more than the regions with a mask do, so that
            nothing may be asked about all of them.
        void: pixels of which the dataset does not say what they are.
    """

    image: str | None
    size: tuple[int, int] | None
    image_id: str
    regions: tuple[Region, ...] = ()
    queries: tuple[Query, ...] = ()
    grounded: tuple[Grounded, ...] = ()
    dialogues: tuple[Dialogue, ...] = ()
    present: frozenset[str] | None = None
    absent: frozenset[str] | None = None
    incomplete_classes: frozenset[str] = frozenset()
    void: MaskOf = None
    _encoded: dict[int, Any] = field(default_factory=dict, init=False, repr=False)
    _objects: list[int] = field(default_factory=list, init=False, repr=False)

    def objects(self, log: SkipLog) -> list[int]:
        """Indices of the regions that are single objects with a mask; crowds are told to the log, once."""
        if not self._objects and self.regions:
            for i, region in enumerate(self.regions):
                if region.crowd:
                    log.skip(CROWD, f"image {self.image_id}, region {region.id or i}")
                elif region.mask is not None and not region.stuff:
                    self._objects.append(i)
            self._objects.append(-1)  # that it was done
        return self._objects[:-1]

    def rle(self, index: int) -> Rle:
        """The region's mask; rasterised once, however many rows speak of it.

        Raises:
            BadEntry: it cannot be read, or has no pixels.
        """
        if index not in self._encoded:
            try:
                self._encoded[index] = encode_region(self.regions[index].mask, self.size)
            except BadEntry as error:
                self._encoded[index] = error
        found = self._encoded[index]
        if isinstance(found, BadEntry):
            raise found.with_traceback(None)
        return found

    def box(self, index: int) -> Box:
        """The region's box, as annotated or else around its mask."""
        box = self.regions[index].box
        if box is None:
            x, y, w, h = coco.toBbox(self.rle(index)).tolist()
            return (x, y, x + w, y + h)
        return checked_box(box, self.size)


def checked_box(box: Sequence[float], size: tuple[int, int] | None) -> Box:
    """A box cut to its image.

    Raises:
        BadEntry: not four numbers, or nothing of it is within the image.
    """
    try:
        x1, y1, x2, y2 = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise BadEntry(BAD_BOX, f"got {abridged(box)}") from error
    if size is not None:
        h, w = size
        x1, x2, y1, y2 = max(x1, 0.0), min(x2, float(w)), max(y1, 0.0), min(y2, float(h))
    if not (x1 < x2 and y1 < y2):  # false for NaN as well
        raise BadEntry(BAD_BOX, f"got {abridged(list(box))} in an image of (h, w) = {size}")
    return x1, y1, x2, y2


def encode_region(mask: MaskOf, size: tuple[int, int] | None) -> Rle:
    """Compressed COCO RLE of a region.

    Args:
        mask: see `Region`.
        size: (h, w) of the image; None: the mask's own.
    Raises:
        BadEntry: unreadable, of another size, or without a pixel.
    """
    try:
        rle = _encode(mask, size)
    except BadEntry:
        raise
    except ValueError as error:
        raise BadEntry(BAD_MASK, str(error)) from error
    if not int(coco.area(rle)):
        raise BadEntry(EMPTY_MASK, f"{type(mask).__name__} of (h, w) = {tuple(rle['size'])}")
    return rle


def union(rles: Sequence[Rle], size: tuple[int, int]) -> Rle:
    """RLE of all pixels of any; none gives an empty mask."""
    if not rles:
        return mask_to_rle(np.zeros(size, bool))
    merged = coco.merge(list(rles))
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}


def _encode(mask: MaskOf, size: tuple[int, int] | None) -> Rle:
    if isinstance(mask, LabelMap):
        found = mask.mask()
    elif isinstance(mask, PixelPolygons):
        found = mask.mask(size)
    elif isinstance(mask, dict) and "polygons" in mask:
        own = mask.get("size") or size
        if own is None:
            raise ValueError(f"polygons {abridged(mask['polygons'])} come without a size: expected size [h, w]")
        if size is not None and check_size(own) != tuple(size):
            raise ValueError(
                f"polygons have size (h, w) = {tuple(own)}: expected {tuple(size)}, the size of their image"
            )
        return polygons_to_rle(mask["polygons"], own)
    elif isinstance(mask, dict) and "counts" in mask:
        found = rle_to_mask(mask["counts"], mask.get("size", size))
    else:
        found = load_mask(mask)
    if size is not None and found.shape != tuple(size):
        raise ValueError(f"mask has size (h, w) = {found.shape}: expected {tuple(size)}, the size of its image")
    return mask_to_rle(found)


def polygons_to_rle(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> Rle:
    """Union of COCO polygons [[x1, y1, x2, y2, …], …] as RLE, just as pycocotools fills them.

    Points beyond the image are legal, up to an image's length away: what of the polygon lies within is kept.

    Raises:
        ValueError: no polygons, or one that is no list of at least three points, or reaches farther than that.
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
    # pycocotools walks along the sides in fifths of a pixel, counted by 32 bits: far points cost memory, or overflow.
    far = not (x1 >= -w and y1 >= -h and x2 <= 2 * w and y2 <= 2 * h)  # true for NaN as well
    if far or max(x2, y2) > MAX_PIXELS:
        raise ValueError(f"polygons reach from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g}): expected 0 <= x <= {w}, y <= {h}")
    runs = coco.frPyObjects([polygon.tolist() for polygon in checked], h, w)
    merged = coco.merge(runs) if len(runs) > 1 else runs[0]
    return {"size": [h, w], "counts": merged["counts"].decode("ascii")}


def size_of(height: Any, width: Any) -> tuple[int, int]:
    """(h, w) of an annotation's two fields; whole floats, as some exports write them, are taken.

    Raises:
        BadEntry: not two positive integers.
    """
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in (height, width)]
    try:
        if not all(is_integer(value) for value in values):
            raise ValueError(f"got height {abridged(height)}, width {abridged(width)}")
        return check_size(values)
    except ValueError as error:
        raise BadEntry(WRONG_SIZE, str(error)) from error
