"""The annotations of one image in a form that all formats share: regions, expressions, dialogues.

The readers in `formats/` create records, the tasks in `tasks/` turn them into samples.
Contract: a `Record` is created and used in one process. Its masks are rasterised by `region_to_rle`, when a task needs
them. Annotations that cannot be used are added to a `SkipLog`, which counts them, or stops a strict run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from himtok_plugin.masks import load_mask
from himtok_plugin.masks.polygons import polygons_to_rle
from himtok_plugin.masks.rle import MAX_PIXELS, check_size, mask_to_rle, rle_to_mask
from himtok_plugin.validation import abridged, finite_numbers

from .skip_log import BAD_BOX, BAD_MASK, CROWD, EMPTY_MASK, AnnotationError, SkipLog

Rle = dict[str, Any]
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels, the end exclusive


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
        accounted: the indices of the regions that a row is about, or that are in a log alone.
        lost: the indices of the regions of rows that were skipped, together with other regions.
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
    accounted: set[int] = field(default_factory=set, init=False, repr=False)
    lost: set[int] = field(default_factory=set, init=False, repr=False)
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

    @property
    def has_logged_crowds(self) -> bool:
        """Whether `objects` was called, so that crowds are in a log."""
        return bool(self._objects)

    def has_bad_mask(self, index: int) -> bool:
        """Whether a task has tried to rasterise the region's mask, in vain."""
        return isinstance(self._encoded.get(index), AnnotationError)

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
        x1, y1, x2, y2 = finite_numbers(box).tolist()
    except ValueError as error:
        raise AnnotationError(BAD_BOX, f"got {abridged(box)}, expected four finite numbers") from error
    if max(map(abs, (x1, x2, y1, y2))) > MAX_PIXELS:
        raise AnnotationError(BAD_BOX, f"got {abridged(box)}, larger than any image")
    if size is not None:
        h, w = size
        x1, x2, y1, y2 = max(x1, 0.0), min(x2, float(w)), max(y1, 0.0), min(y2, float(h))
    if not (x1 < x2 and y1 < y2):  # false for NaN as well
        raise AnnotationError(BAD_BOX, f"got {abridged(box)} in an image of (h, w) = {size}")
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
        what = abridged(mask) if isinstance(mask, str) else type(mask).__name__
        raise AnnotationError(EMPTY_MASK, f"{what} of (h, w) = {tuple(rle['size'])}")
    return rle


def explain_other_size(found: Sequence[int], size: Sequence[int]) -> str:
    """The rest of an error about a mask or label map of (h, w) `found`, whose image has the size `size`."""
    text = f"(h, w) = {tuple(found)}: expected {tuple(size)}, the size of its image"
    if tuple(found) != tuple(size)[::-1]:
        return text
    return (
        f"{text}; if the image has an EXIF orientation, masks belong to the upright image that viewers show: turn "
        "them, too, or store the image upright (mogrify -auto-orient) and annotate that"
    )


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
            raise ValueError(f"polygons have {explain_other_size(check_size(own), size)}")
        if not mask["polygons"]:
            raise ValueError(f"polygons is {abridged(mask['polygons'])}: expected at least one [x1, y1, x2, y2, ...]")
        return polygons_to_rle(mask["polygons"], own)
    elif isinstance(mask, dict) and "counts" in mask:
        own = mask.get("size", size)
        if own is None:
            raise ValueError("RLE has no size: expected size [h, w]")
        found = rle_to_mask(mask["counts"], own)
    else:
        found = load_mask(mask)
    if size is not None and found.shape != tuple(size):
        raise ValueError(f"mask has {explain_other_size(found.shape, size)}")
    return mask_to_rle(found)
