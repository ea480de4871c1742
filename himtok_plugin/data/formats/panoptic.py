"""COCO panoptic: a JSON in COCO's layout, and for each image a PNG whose colours are segment ids.

Contract: one record per image, with one region per segment; classes without single objects are `stuff`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.data.annotation_values import annotated_size, id_text, normal_id
from himtok_plugin.data.byte_ranges import read_json_at
from himtok_plugin.data.records import LabelMap, Record, Region, class_names, explain_other_size
from himtok_plugin.data.skip_log import BAD_ENTRY, BAD_MASK, UNKNOWN_CATEGORY, AnnotationError, SkipLog
from himtok_plugin.files.finder import FileFinder
from himtok_plugin.files.images import make_upright
from himtok_plugin.validation import abridged

from .coco_index import CocoIndex
from .crowds import is_crowd
from .image_finder import ImageFinder, find_mask
from .reader import Reader, Source, find_path

_MERGED = re.compile(r"-(merged|other|stuff)\b")  # COCO's merged classes are called "wall-other-merged"


class PanopticReader(Reader):
    """`annotations/panoptic_<split>2017.json` and the folder of the same name."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        name = f"panoptic_{source.split}2017"
        self.path = self.annotation_file(f"annotations/{name}.json", f"{name}.json")
        folder = self.path.with_suffix("").name
        self.maps = find_path(self.path.parent, None, (folder, f"../{folder}", "."), "annotations")
        self.map_finder = FileFinder([self.maps], (".png",))
        folders = (f"{source.split}2017", f"images/{source.split}2017", "images", "", f"../{source.split}2017")
        self.finder = ImageFinder(source, folders)
        self.names: dict[Any, str] = {}
        self.things: set[Any] = set()
        self.crowds_are_objects = False

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        index = CocoIndex.read(self.path, log)
        self.crowds_are_objects = index.crowds.are_objects(self.source.crowds, self.path, log)
        self.names = {id: _MERGED.sub("", name).replace("-", " ") for id, name in index.names().items()}
        self.names |= index.given_names(self.source.classes, log)
        self.things = {id for id, entry in index.categories.items() if entry.get("isthing", 1)}
        return index.image_items()

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        where, places = item
        image = read_json_at(self.path, where)
        name = f"image {image.get('id')}"
        try:
            own = annotated_size(image.get("height"), image.get("width"), log, self.path.name)
            path, size = self.finder.find(image.get("file_name"), own)
            annotations = [read_json_at(self.path, place) for place in places]
            if len(annotations) != 1:
                raise AnnotationError(BAD_ENTRY, f"has {len(annotations)} annotations: expected one")
            segment_ids = read_segment_ids(find_mask(self.map_finder, annotations[0].get("file_name"), BAD_MASK))
            if segment_ids.shape != tuple(size):
                raise AnnotationError(BAD_MASK, f"its map has {explain_other_size(segment_ids.shape, size)}")
            segments = annotations[0].get("segments_info")
            if not isinstance(segments, list):
                raise AnnotationError(BAD_ENTRY, f"segments_info is {abridged(segments)}: expected a list")
        except AnnotationError as error:
            raise AnnotationError(error.reason, f"{name}: {error.detail}") from error
        regions = []
        for segment in segments:
            if not isinstance(segment, dict):
                log.add(BAD_ENTRY, f"{name}: a segment is {abridged(segment)}: expected an object")
                continue
            category, id = normal_id(segment.get("category_id")), normal_id(segment.get("id"))
            if category not in self.names:
                found = abridged(segment.get("category_id"))
                log.add(UNKNOWN_CATEGORY, f"{name}, segment {abridged(id)}: got {found}")
                continue
            if not isinstance(id, int):
                log.add(BAD_ENTRY, f"{name}: a segment has the id {abridged(segment.get('id'))}: expected an integer")
                continue
            regions.append(
                Region(
                    LabelMap(segment_ids, (id,)),
                    self.names[category],
                    crowd=is_crowd(segment) and not self.crowds_are_objects,
                    stuff=category not in self.things,
                    id=str(id),
                )
            )
        present = class_names(regions)
        yield Record(
            path, size, id_text(image.get("id")), tuple(regions), present=present, void=LabelMap(segment_ids, (0,))
        )


def read_segment_ids(path: Path) -> np.ndarray:
    """int32 (h, w) of a panoptic PNG: red + 256 green + 65536 blue."""
    try:
        with Image.open(path) as image:
            colours = np.asarray(make_upright(image).convert("RGB"), dtype=np.int32)
    except Exception as error:  # PIL's readers raise nearly anything on damaged files
        raise AnnotationError(BAD_MASK, f"{path}: {error}") from error
    return colours @ np.array([1, 256, 65536], dtype=np.int32)
