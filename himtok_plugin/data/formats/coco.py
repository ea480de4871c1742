"""COCO instances and everything in the same layout: LVIS, PACO, COCO stuff as JSON, the user's own COCO-JSON.

Contract: one record per image, with a region per annotation, crowds included and marked.
Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ..byte_ranges import read_json
from ..records import BAD_ENTRY, BadEntry, Record, SkipLog, size_of
from .coco_index import CocoIndex, region_of
from .reader import ImageFinder, Reader, Source


class CocoReader(Reader):
    """Instances of COCO 2017 or 2014, and of any file named with `annotations`."""

    candidates = (
        "annotations/instances_{split}2017.json",
        "instances_{split}2017.json",
        "annotations/instances_{split}2014.json",
        "instances_{split}2014.json",
    )

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.path = self.annotation_file(*(name.format(split=source.split) for name in self.candidates))
        self.finder = ImageFinder(source, self.image_folders())
        self.names: dict[Any, str] = {}

    def image_folders(self) -> tuple[str, ...]:
        split = self.source.split
        below = (f"{split}2017", f"{split}2014", split)
        return (*below, *(f"images/{name}" for name in below), "images", "", f"../{below[0]}", f"../{below[1]}")

    def tasks(self, log: SkipLog) -> Sequence[Any]:
        index = CocoIndex.read(self.path, log)
        if not index.categories:
            raise ValueError(f"{self.path}: has no categories: expected a file in COCO's layout")
        self.names = self.category_names(index)
        return index.image_tasks()

    def category_names(self, index: CocoIndex) -> dict[Any, str]:
        return index.names()

    def image_name(self, image: dict[str, Any]) -> Any:
        return image.get("file_name")

    def absent(self, image: dict[str, Any]) -> frozenset[str] | None:
        """Names of categories that the image is said not to show; None: all without an annotation."""
        return None

    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        where, annotations = task
        image = read_json(self.path, where)
        name = f"image {image.get('id')}"
        try:
            path, size = self.finder.find(self.image_name(image), size_of(image.get("height"), image.get("width")))
        except BadEntry as error:
            raise BadEntry(error.reason, f"{name}: {error.detail}") from error
        regions, present = [], set()
        for place in annotations:
            try:
                annotation = read_json(self.path, place)
                if not isinstance(annotation, dict):
                    raise BadEntry(BAD_ENTRY, "no object")
                present.add(self.names.get(annotation.get("category_id"), ""))
                regions.append(region_of(annotation, self.names, size))
            except BadEntry as error:
                log.skip(error.reason, f"{name}, annotation at byte {place[0]}: {error.detail}")
        yield Record(
            path, size, str(image.get("id")), tuple(regions), present=frozenset(present), absent=self.absent(image)
        )


class StuffReader(CocoReader):
    """COCO stuff as JSON (`stuff_train2017.json`); "other" stands for all things, and is no class."""

    candidates = ("annotations/stuff_{split}2017.json", "stuff_{split}2017.json")

    def category_names(self, index: CocoIndex) -> dict[Any, str]:
        return {id: name.replace("-", " ") for id, name in index.names().items()}

    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        for record in super().records(task, log):
            yield replace(record, regions=tuple(r for r in record.regions if r.category != "other"))


class LvisReader(CocoReader):
    """LVIS v1. Its annotations are exhaustive only for the classes that it says, so absence is what it says, too."""

    candidates = ("lvis_v1_{split}.json", "annotations/lvis_v1_{split}.json", "annotations/lvis_v0.5_{split}.json")

    def image_folders(self) -> tuple[str, ...]:
        # LVIS divides COCO's images anew: a name is "train2017/000000000009.jpg".
        return ("", "images", "..", *super().image_folders())

    def category_names(self, index: CocoIndex) -> dict[Any, str]:
        return {id: _words(entry.get("name", id)) for id, entry in index.categories.items()}

    def image_name(self, image: dict[str, Any]) -> Any:
        url = image.get("coco_url")
        return image.get("file_name") or ("/".join(url.split("/")[-2:]) if isinstance(url, str) else None)

    def absent(self, image: dict[str, Any]) -> frozenset[str]:
        return frozenset(self.names[id] for id in image.get("neg_category_ids", ()) if id in self.names)


class PacoReader(LvisReader):
    """PACO-LVIS: objects and their parts, whose categories are called "trash_can:handle"."""

    candidates = (
        "paco_lvis_v1_{split}.json",
        "annotations/paco_lvis_v1_{split}.json",
        "paco_annotations/paco_lvis_v1_{split}.json",
    )

    def category_names(self, index: CocoIndex) -> dict[Any, str]:
        names = {}
        for id, entry in index.categories.items():
            thing, colon, part = str(entry.get("name", id)).partition(":")
            names[id] = f"{_words(part)} of the {_words(thing)}" if colon else _words(thing)
        return names


def _words(name: Any) -> str:
    """LVIS writes "bow_(weapon)" and "trash_can"."""
    return " ".join(str(name).replace("_", " ").split())


class OwnCocoReader(CocoReader):
    """COCO-JSON as labelling tools export it (CVAT, Label Studio, Roboflow, …)."""

    candidates = (
        "annotations/instances_{split}.json",
        "{split}/_annotations.coco.json",
        "{split}.json",
        "annotations/{split}.json",
        "annotations.json",
        "_annotations.coco.json",
        "result.json",
        "annotations/instances_default.json",
        "instances_default.json",
        "*.json",
    )

    def image_folders(self) -> tuple[str, ...]:
        split = self.source.split
        return (str(self.path.parent.absolute()), "images", f"images/{split}", split, "", "images/default")
