"""Files in COCO's layout (images, annotations, categories): the byte ranges of the entries, and how entries are parsed.

Shared by all datasets in this layout: COCO itself, LVIS, PACO, RefCOCO, the user's own.
Contract: `CocoIndex.read` reads a file of any size once and keeps 48 bytes per entry. Left out and logged as skipped
are images and categories whose id is repeated, annotations without an image, and annotations that are written twice.
Ids of annotations may begin anew in each image. Ids are compared as `normal_id` has them.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from himtok_plugin.data.annotation_values import id_text, normal_id
from himtok_plugin.data.byte_ranges import Range, RangeIndex, find_repeated, id_to_int, iter_elements, read_json_at
from himtok_plugin.data.class_maps import ClassMap
from himtok_plugin.data.records import Box, Region
from himtok_plugin.data.skip_log import (
    BAD_BOX,
    BAD_ENTRY,
    BAD_MASK,
    EMPTY_MASK,
    REPEATED_ID,
    UNKNOWN_CATEGORY,
    UNKNOWN_ID,
    AnnotationError,
    SkipLog,
)
from himtok_plugin.validation import abridged, finite_numbers

from .crowds import CrowdCounts, is_crowd

NO_ID = -(1 << 61)  # an annotation without an id gets this plus its position, so that no two are equal


def has_coco_layout(path: Path) -> bool:
    """Whether a file is an object with lists of images and annotations; it is read up to the first of these.

    Raises:
        ValueError: not JSON.
    """
    for key, _, length, value in iter_elements(path):
        if key is None:
            return False
        if key in ("images", "annotations") and (not length or isinstance(value, dict)):
            return True
    return False


class CocoIndex:
    """The byte ranges of a file's images and annotations.

    Attributes:
        path: the file.
        categories: id -> entry.
        images: grouped by image id.
        annotations: grouped by image id.
        crowds: what `iscrowd` may mean in this file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.categories: dict[Any, dict[str, Any]] = {}
        self.images, self.annotations = RangeIndex(), RangeIndex()
        self.crowds = CrowdCounts()

    @classmethod
    def read(cls, path: Path, log: SkipLog) -> CocoIndex:
        """Read the file once.

        Raises:
            ValueError: not JSON, truncated, or without images or annotations.
        """
        index, image_ids, annotation_ids = cls(path), array("q"), array("q")
        keys = set()
        for key, begin, length, value in iter_elements(path):
            keys.add(key)
            if key not in ("images", "annotations", "categories") or not length:
                continue
            own_key = "image_id" if key == "annotations" else "id"
            if not isinstance(value, dict) or normal_id(value.get(own_key)) is None:
                log.add(BAD_ENTRY, f"{path}: {key}: {abridged(value)} has no id")
            elif key == "images":
                image_ids.append(id_to_int(value["id"]))
                index.images.add(value["id"], begin, length)
            elif key == "annotations":
                own = value.get("id")
                annotation_ids.append(NO_ID + begin if own is None else id_to_int(own))
                index.annotations.add(value["image_id"], begin, length)
                index.crowds.add(value)
            else:
                try:
                    # `iter_elements` decodes text as latin-1; ids and names of categories need UTF-8.
                    index._add_category(read_json_at(path, (begin, length)), log)
                except AnnotationError as error:
                    log.add(error.reason, f"{path}: category {value['id']}: {error.detail}")
        if missing := {"images", "annotations"} - keys:
            raise ValueError(f"{path}: has no {' and no '.join(sorted(missing))}: expected a file in COCO's layout")
        index._drop_repeated(image_ids, annotation_ids, log)
        return index

    def _add_category(self, entry: dict[str, Any], log: SkipLog) -> None:
        id = normal_id(entry["id"])
        if id in self.categories:
            raise AnnotationError(REPEATED_ID, f"{abridged(entry.get('name'))} has the same id as another one")
        self.categories[id] = entry

    def _drop_repeated(self, image_ids: array, annotation_ids: array, log: SkipLog) -> None:
        again = find_repeated(image_ids)
        log.add_all(REPEATED_ID, [f"{self.path}: image {image_ids[i]}" for i in again])
        self.images.drop(again)
        self._drop_copies(np.frombuffer(annotation_ids, dtype=np.int64) if annotation_ids else np.zeros(0, int), log)
        unknown = np.flatnonzero(~np.isin(self.annotations.groups(), self.images.groups()))
        begins = [self.annotations.range(i)[0] for i in unknown.tolist()]
        details = [f"{self.path}: annotation at byte {begin}: its image" for begin in begins]
        log.add_all(UNKNOWN_ID, details)
        self.annotations.drop(unknown)

    def _drop_copies(self, ids: np.ndarray, log: SkipLog) -> None:
        """Leave out annotations that equal an earlier one of their image; the id alone says little, as all may be 0."""
        groups = self.annotations.groups()
        order = np.lexsort((ids, groups))  # stable: equal pairs stay in the order of the file
        same = (groups[order][1:] == groups[order][:-1]) & (ids[order][1:] == ids[order][:-1])
        copies = []
        seen: list[Any] = []
        for before, i, is_same in zip(order[:-1].tolist(), order[1:].tolist(), same.tolist(), strict=True):
            if not is_same:
                seen = []
                continue
            seen = seen or [self._content(before)]
            if (content := self._content(i)) in seen:
                copies.append(i)
            else:
                seen.append(content)
        begins = [self.annotations.range(i)[0] for i in copies]
        log.add_all(REPEATED_ID, [f"{self.path}: annotation at byte {begin} equals an earlier one" for begin in begins])
        self.annotations.drop(np.array(sorted(copies), dtype=np.int64))

    def _content(self, index: int) -> str | None:
        """An annotation in a form to compare; None if it cannot be read, which is logged when it is used."""
        try:
            return json.dumps(read_json_at(self.path, self.annotations.range(index)), sort_keys=True)
        except AnnotationError:
            return None

    def names(self) -> dict[Any, str]:
        """Category id -> name."""
        return {id: str(entry.get("name") or id) for id, entry in self.categories.items()}

    def given_names(self, classes: ClassMap | None, log: SkipLog) -> dict[Any, str]:
        """The names in a class map, by category id; a note names the categories without a name in either place."""
        known = self.categories
        given = {id: name for id, name in (classes or {}).items() if id in known or not known}
        unnamed = [id for id, entry in known.items() if id not in given and not entry.get("name")]
        if unnamed:
            listed = ", ".join(map(str, unnamed[:8]))
            which = f"category {listed} has no name" if len(unnamed) == 1 else f"categories {listed} have no names"
            log.notes.append(f"{self.path}: {which}: asked about by id; give --classes")
        return given

    def image_items(self) -> Sequence[tuple[Range, list[Range]]]:
        """For each image in the order of the file: its range, and those of its annotations."""
        return _ImageItems(self)


class _ImageItems(Sequence[tuple[Range, list[Range]]]):
    def __init__(self, index: CocoIndex) -> None:
        self._index, self._groups = index, index.images.groups()

    def __len__(self) -> int:
        return len(self._index.images)

    def __getitem__(self, index: Any) -> Any:
        group = int(self._groups[index])
        return self._index.images.range(index), self._index.annotations.in_group(group)


class ImageClasses:
    """The classes of one image according to its annotations, including those that no region could be made of.

    Attributes:
        present: classes with an annotation.
        incomplete: classes with an annotation that has no mask.
        unreadable: whether an annotation cannot be read at all; then every class is incomplete.
    """

    def __init__(self, names: Mapping[Any, str]) -> None:
        self._names = names
        self.present: set[str] = set()
        self.incomplete: set[str] = set()
        self.unreadable = False

    def add(self, annotation: Any, region: Region | None) -> None:
        """Add an annotation and the region that was made of it, if any."""
        if not isinstance(annotation, dict):
            self.unreadable = True
            self.incomplete.update(self._names.values())
        elif (name := self._names.get(normal_id(annotation.get("category_id")))) is not None:
            self.present.add(name)
            if region is None or region.mask is None:
                self.incomplete.add(name)


def annotation_to_region(
    annotation: Mapping[str, Any], names: Mapping[Any, str], size: tuple[int, int], crowds_are_objects: bool = False
) -> Region:
    """Convert an annotation in COCO's layout to a region.

    Args:
        crowds_are_objects: whether `iscrowd` marks single objects, see `CrowdCounts`.
    Raises:
        AnnotationError: unknown category, no mask, or a mask of an unknown form.
    """
    category = normal_id(annotation.get("category_id"))
    if category not in names:
        raise AnnotationError(UNKNOWN_CATEGORY, f"got {abridged(annotation.get('category_id'))}")
    box = annotation.get("bbox")
    return Region(
        mask=segmentation_mask(annotation.get("segmentation"), size, has_box=box is not None),
        category=names[category],
        box=None if box is None else xywh_to_xyxy(box),
        crowd=is_crowd(annotation) and not crowds_are_objects,
        id=id_text(annotation.get("id")),
    )


def segmentation_mask(segmentation: Any, size: tuple[int, int], has_box: bool = False) -> Any:
    """The mask in a field `segmentation`: polygons or RLE; None if there is a box and no segmentation."""
    if isinstance(segmentation, dict):
        return {"size": segmentation.get("size", list(size)), "counts": segmentation.get("counts")}
    if segmentation is None and has_box:
        return None
    if not isinstance(segmentation, list):
        raise AnnotationError(BAD_MASK, f"segmentation is {abridged(segmentation)}: expected polygons or RLE")
    if not segmentation:
        beside = ", beside a box: expected segmentation polygons or RLE" if has_box else ""
        raise AnnotationError(EMPTY_MASK, f"segmentation is []{beside}")
    return {"size": list(size), "polygons": segmentation}


def xywh_to_xyxy(box: Any) -> Box:
    """COCO's x, y, width, height -> x1, y1, x2, y2."""
    try:
        x, y, w, h = finite_numbers(box).tolist()
    except ValueError as error:
        raise AnnotationError(BAD_BOX, f"got {abridged(box)}: expected x, y, width, height") from error
    return (x, y, x + w, y + h)
