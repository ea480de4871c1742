"""COCO panoptic: a JSON in COCO's layout, and a PNG per image whose colours are numbers of segments.

Contract: one record per image, with a region per segment; classes without single objects are `stuff`.
Does not know prompts and rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.data.byte_ranges import read_json
from himtok_plugin.data.records import (
    BAD_ENTRY,
    BAD_MASK,
    UNKNOWN_CATEGORY,
    BadEntry,
    LabelMap,
    Record,
    Region,
    SkipLog,
    size_of,
)
from himtok_plugin.validation import abridged

from .coco_index import CocoIndex
from .reader import ImageFinder, Reader, Source, find_path

_MERGED = re.compile(r"-(merged|other|stuff)\b")  # "wall-other-merged" is what COCO's makers put together


class PanopticReader(Reader):
    """`annotations/panoptic_<split>2017.json` and the folder of the same name."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        name = f"panoptic_{source.split}2017"
        self.path = self.annotation_file(f"annotations/{name}.json", f"{name}.json")
        folder = self.path.with_suffix("").name
        self.maps = find_path(self.path.parent, None, (folder, f"../{folder}", "."), "annotations")
        folders = (f"{source.split}2017", f"images/{source.split}2017", "images", "", f"../{source.split}2017")
        self.finder = ImageFinder(source, folders)
        self.names: dict[Any, str] = {}
        self.things: set[Any] = set()

    def tasks(self, log: SkipLog) -> Sequence[Any]:
        index = CocoIndex.read(self.path, log)
        self.names = {id: _MERGED.sub("", name).replace("-", " ") for id, name in index.names().items()}
        self.things = {id for id, entry in index.categories.items() if entry.get("isthing", 1)}
        return index.image_tasks()

    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        where, places, _ = task
        image = read_json(self.path, where)
        name = f"image {image.get('id')}"
        try:
            path, size = self.finder.find(image.get("file_name"), size_of(image.get("height"), image.get("width")))
            annotations = [read_json(self.path, place) for place in places]
            if len(annotations) != 1:
                raise BadEntry(BAD_ENTRY, f"has {len(annotations)} annotations: expected one")
            numbers = segment_numbers(self.maps / str(annotations[0].get("file_name")))
            if numbers.shape != tuple(size):
                raise BadEntry(BAD_MASK, f"its map has (h, w) = {numbers.shape}: expected {size}")
        except BadEntry as error:
            raise BadEntry(error.reason, f"{name}: {error.detail}") from error
        regions = []
        for segment in annotations[0].get("segments_info", ()):
            category = segment.get("category_id")
            if category not in self.names:
                log.skip(UNKNOWN_CATEGORY, f"{name}, segment {segment.get('id')}: got {abridged(category)}")
                continue
            regions.append(
                Region(
                    LabelMap(numbers, (int(segment["id"]),)),
                    self.names[category],
                    crowd=bool(segment.get("iscrowd", 0)),
                    stuff=category not in self.things,
                    id=str(segment["id"]),
                )
            )
        present = frozenset(region.category for region in regions)
        yield Record(path, size, str(image.get("id")), tuple(regions), present=present, void=LabelMap(numbers, (0,)))


def segment_numbers(path: Path) -> np.ndarray:
    """int32 (h, w) of a panoptic PNG: red + 256 green + 65536 blue."""
    try:
        with Image.open(path) as image:
            colours = np.asarray(image.convert("RGB"), dtype=np.int32)
    except Exception as error:  # PIL's readers raise nearly anything on damaged files
        raise BadEntry(BAD_MASK, f"{path}: {error}") from error
    return colours @ np.array([1, 256, 65536], dtype=np.int32)
