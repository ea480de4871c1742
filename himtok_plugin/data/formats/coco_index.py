"""Files in COCO's layout (images, annotations, categories): where each entry stands, and what it says.

Purpose: shared by all datasets that come in this layout: COCO itself, LVIS, PACO, RefCOCO, the user's own.
Contract: `CocoIndex.read` goes once through a file of any size and keeps 48 bytes per entry. Ids that occur twice and
annotations of images that are not in the file are left out, and told to the log. Ids are integers or ASCII strings.
Does not know images on disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from himtok_plugin.data.byte_ranges import Range, Ranges, group_number, read_json, repeated, walk
from himtok_plugin.data.records import (
    BAD_BOX,
    BAD_ENTRY,
    BAD_MASK,
    EMPTY_MASK,
    REPEATED_ID,
    UNKNOWN_CATEGORY,
    UNKNOWN_ID,
    BadEntry,
    Box,
    Region,
    SkipLog,
)
from himtok_plugin.validation import abridged

NO_ID = -(1 << 61)  # annotations may come without an id; each is then a different one


def in_coco_layout(path: Path) -> bool:
    """Whether a file is an object with lists of images and annotations; only what stands before the first is read.

    Raises:
        ValueError: not JSON.
    """
    for key, _, length, value in walk(path):
        if key is None:
            return False
        if key in ("images", "annotations") and (not length or isinstance(value, dict)):
            return True
    return False


class CocoIndex:
    """Where images and annotations of a file stand.

    Attributes:
        path: the file.
        categories: id -> entry.
        images: by image id.
        annotations: by image id.
        left_out: places of annotations whose id stood before already, by the number of their image: of what they show
            there is more in it than the others say.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.categories: dict[Any, dict[str, Any]] = {}
        self.images, self.annotations = Ranges(), Ranges()
        self.left_out: dict[int, list[Range]] = {}

    @classmethod
    def read(cls, path: Path, log: SkipLog) -> CocoIndex:
        """Go through the file.

        Raises:
            ValueError: not JSON, cut off, or without images or annotations.
        """
        index, image_ids, annotation_ids = cls(path), array("q"), array("q")
        keys = set()
        for key, begin, length, value in walk(path):
            keys.add(key)
            if key not in ("images", "annotations", "categories") or not length:
                continue
            own_key = "image_id" if key == "annotations" else "id"
            if not isinstance(value, dict) or not isinstance(value.get(own_key), int | str):
                log.skip(BAD_ENTRY, f"{path}: {key}: {abridged(value)} has no id")
            elif key == "images":
                image_ids.append(group_number(value["id"]))
                index.images.add(value["id"], begin, length)
            elif key == "annotations":
                own = value.get("id")
                annotation_ids.append(NO_ID + begin if own is None else group_number(own))
                index.annotations.add(value["image_id"], begin, length)
            elif value["id"] in index.categories:
                log.skip(REPEATED_ID, f"{path}: category {value['id']}")
            else:
                try:
                    # `walk` reads bytes as latin-1; names of categories are kept, so they are read anew, as text.
                    index.categories[value["id"]] = read_json(path, (begin, length))
                except BadEntry as error:
                    log.skip(error.reason, f"{path}: category {value['id']}: {error.detail}")
        if missing := {"images", "annotations"} - keys:
            raise ValueError(f"{path}: has no {' and no '.join(sorted(missing))}: expected a file in COCO's layout")
        index._drop_repeated(image_ids, annotation_ids, log)
        return index

    def _drop_repeated(self, image_ids: array, annotation_ids: array, log: SkipLog) -> None:
        for name, ids, ranges in (
            ("image", image_ids, self.images),
            ("annotation", annotation_ids, self.annotations),
        ):
            again = repeated(ids)
            log.skip_many(REPEATED_ID, [f"{self.path}: {name} {ids[i]}" for i in again])
            if ranges is self.annotations:
                for i in again.tolist():
                    self.left_out.setdefault(int(ranges.groups()[i]), []).append(ranges.range(i))
            ranges.drop(again)
        unknown = np.flatnonzero(~np.isin(self.annotations.groups(), self.images.groups()))
        details = [f"{self.path}: annotation at byte {self.annotations.range(i)[0]}: its image" for i in unknown]
        log.skip_many(UNKNOWN_ID, details)
        self.annotations.drop(unknown)

    def names(self) -> dict[Any, str]:
        """Category id -> name."""
        return {id: str(entry.get("name", id)) for id, entry in self.categories.items()}

    def image_tasks(self) -> Sequence[tuple[Range, list[Range], list[Range]]]:
        """For each image in the order of the file: its place, those of its annotations, and of those left out."""
        return _ImageTasks(self)


class _ImageTasks(Sequence):
    def __init__(self, index: CocoIndex) -> None:
        self._index, self._groups = index, index.images.groups()

    def __len__(self) -> int:
        return len(self._index.images)

    def __getitem__(self, index: int) -> tuple[Range, list[Range], list[Range]]:
        group = int(self._groups[index])
        left_out = self._index.left_out.get(group, [])
        return self._index.images.range(index), self._index.annotations.of(group), left_out


class ImageClasses:
    """What the annotations of one image say of its classes, those that give no region among them.

    Attributes:
        present: classes of which there is an annotation.
        incomplete: those of which the regions' masks do not show everything.
        unreadable: whether nobody can say what one of them shows; all classes are incomplete then.
    """

    def __init__(self, names: Mapping[Any, str]) -> None:
        self._names = names
        self.present: set[str] = set()
        self.incomplete: set[str] = set()
        self.unreadable = False

    def add(self, annotation: Any, region: Region | None) -> None:
        """Count an annotation in, with what was made of it."""
        if not isinstance(annotation, dict):
            self.unreadable = True
            self.incomplete.update(self._names.values())
        elif (name := self._names.get(annotation.get("category_id"))) is not None:
            self.present.add(name)
            if region is None or region.mask is None:
                self.incomplete.add(name)

    def add_at(self, path: Path, where: Range) -> None:
        """Count in an annotation that was told to the log already."""
        try:
            self.add(read_json(path, where), None)
        except BadEntry:
            self.add(None, None)


def region_of(annotation: Mapping[str, Any], names: Mapping[Any, str], size: tuple[int, int]) -> Region:
    """The region of an annotation in COCO's layout.

    Raises:
        BadEntry: unknown category, no mask, or a mask of another kind.
    """
    category = annotation.get("category_id")
    if category not in names:
        raise BadEntry(UNKNOWN_CATEGORY, f"got {abridged(category)}")
    box = annotation.get("bbox")
    return Region(
        mask=segmentation_mask(annotation.get("segmentation"), size, has_box=box is not None),
        category=names[category],
        box=None if box is None else corners(box),
        crowd=bool(annotation.get("iscrowd", 0)),
        id=str(annotation.get("id", "")),
    )


def segmentation_mask(segmentation: Any, size: tuple[int, int], has_box: bool = False) -> Any:
    """The mask of a `segmentation`: polygons, RLE of either kind; None for none at all beside a box."""
    if isinstance(segmentation, dict):
        return {"size": segmentation.get("size", list(size)), "counts": segmentation.get("counts")}
    if segmentation is None and has_box:
        return None
    if not isinstance(segmentation, list):
        raise BadEntry(BAD_MASK, f"segmentation is {abridged(segmentation)}: expected polygons or RLE")
    if not segmentation:
        raise BadEntry(EMPTY_MASK, "segmentation is []")
    return {"size": list(size), "polygons": segmentation}


def corners(box: Any) -> Box:
    """COCO's x, y, width, height as x1, y1, x2, y2."""
    try:
        x, y, w, h = (float(value) for value in box)
    except (TypeError, ValueError) as error:
        raise BadEntry(BAD_BOX, f"got {abridged(box)}: expected x, y, width, height") from error
    return (x, y, x + w, y + h)
