"""COCO instances and everything in the same layout: LVIS, PACO, COCO stuff as JSON, the user's own COCO-JSON.

Contract: one record per image, with one region per annotation; crowds are included and marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from himtok_plugin.data.byte_ranges import read_json_at
from himtok_plugin.data.records import BAD_ENTRY, AnnotationError, Record, Region, SkipLog, parse_size

from .coco_index import CocoIndex, ImageClasses, annotation_to_region
from .label_maps import STUFF_MAPS, StuffMapsReader
from .reader import ImageFinder, Reader, Source, split_names

STUFF_FILES = ("annotations/stuff_{split}2017.json", "stuff_{split}2017.json")


class CocoReader(Reader):
    """Instances of COCO 2017 or 2014, or of the file given as `annotations`."""

    candidates: tuple[str, ...] = (
        "annotations/instances_{split}2017.json",
        "instances_{split}2017.json",
        "annotations/instances_{split}2014.json",
        "instances_{split}2014.json",
    )

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.path = self.find_annotations()
        self.finder = ImageFinder(source, self.image_folders())
        self.names: dict[Any, str] = {}

    def find_annotations(self) -> Path:
        return self.annotation_file(*(name.format(split=self.source.split) for name in self.candidates))

    def image_folders(self) -> tuple[str, ...]:
        split = self.source.split
        below = (f"{split}2017", f"{split}2014", split)
        return (*below, *(f"images/{name}" for name in below), "images", "", f"../{below[0]}", f"../{below[1]}")

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        index = CocoIndex.read(self.path, log)
        if not index.categories:
            raise ValueError(f"{self.path}: has no categories: expected a file in COCO's layout")
        self.names = self.category_names(index)
        return index.image_items()

    def category_names(self, index: CocoIndex) -> dict[Any, str]:
        return index.names()

    def image_name(self, image: dict[str, Any]) -> Any:
        return image.get("file_name")

    def absent(self, image: dict[str, Any]) -> frozenset[str] | None:
        """The classes that the entry states to be absent; None: all without an annotation."""
        return None

    def not_exhaustive(self, image: dict[str, Any]) -> frozenset[str]:
        """The classes of which the entry states that not every object is annotated."""
        return frozenset()

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        where, annotations, duplicates = item
        image = read_json_at(self.path, where)
        name = f"image {image.get('id')}"
        try:
            path, size = self.finder.find(self.image_name(image), parse_size(image.get("height"), image.get("width")))
        except AnnotationError as error:
            raise AnnotationError(error.reason, f"{name}: {error.detail}") from error
        regions: list[Region] = []
        classes = ImageClasses(self.names)
        for place in annotations:
            annotation = region = None
            try:
                annotation = read_json_at(self.path, place)
                if not isinstance(annotation, dict):
                    raise AnnotationError(BAD_ENTRY, "expected an object")
                region = annotation_to_region(annotation, self.names, size)
                regions.append(region)
            except AnnotationError as error:
                log.add(error.reason, f"{name}, annotation at byte {place[0]}: {error.detail}")
            classes.add(annotation, region)
        for place in duplicates:
            classes.add_at(self.path, place)
        yield Record(
            path,
            size,
            str(image.get("id")),
            tuple(regions),
            present=frozenset(classes.present),
            absent=frozenset() if classes.unreadable else self.absent(image),
            incomplete_classes=self.not_exhaustive(image) | classes.incomplete,
        )


class StuffJsonReader(CocoReader):
    """COCO stuff as JSON (`stuff_train2017.json`); its category "other" covers all things and is left out."""

    candidates = STUFF_FILES

    def category_names(self, index: CocoIndex) -> dict[Any, str]:
        return {id: name.replace("-", " ") for id, name in index.names().items()}

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        for record in super().read_records(item, log):
            yield replace(record, regions=tuple(r for r in record.regions if r.category != "other"))


class StuffReader(Reader):
    """COCO stuff, as JSON or, without that, as label maps of things and stuff (`label_maps.StuffMapsReader`)."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        candidates = [name.format(split=source.split) for name in (*STUFF_FILES, *STUFF_MAPS)]
        is_json = self.annotation_file(*candidates).is_file()
        self.reader: Reader = StuffJsonReader(source) if is_json else StuffMapsReader(source)

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        return self.reader.list_items(log)

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        return self.reader.read_records(item, log)


class LvisReader(CocoReader):
    """LVIS v1. Each image lists the classes that are absent from it and those that are not annotated exhaustively."""

    candidates = ("lvis_v1_{split}.json", "annotations/lvis_v1_{split}.json", "annotations/lvis_v0.5_{split}.json")

    def image_folders(self) -> tuple[str, ...]:
        # LVIS has other splits than COCO, so a name includes COCO's: "train2017/000000000009.jpg".
        return ("", "images", "..", *super().image_folders())

    def category_names(self, index: CocoIndex) -> dict[Any, str]:
        return {id: _category_words(entry.get("name", id)) for id, entry in index.categories.items()}

    def image_name(self, image: dict[str, Any]) -> Any:
        url = image.get("coco_url")
        return image.get("file_name") or ("/".join(url.split("/")[-2:]) if isinstance(url, str) else None)

    def absent(self, image: dict[str, Any]) -> frozenset[str]:
        return frozenset(self.names[id] for id in image.get("neg_category_ids", ()) if id in self.names)

    def not_exhaustive(self, image: dict[str, Any]) -> frozenset[str]:
        return frozenset(self.names[id] for id in image.get("not_exhaustive_category_ids", ()) if id in self.names)


class PacoReader(LvisReader):
    """PACO-LVIS: objects and their parts; the category of a part is called "trash_can:handle"."""

    candidates = (
        "paco_lvis_v1_{split}.json",
        "annotations/paco_lvis_v1_{split}.json",
        "paco_annotations/paco_lvis_v1_{split}.json",
    )

    def category_names(self, index: CocoIndex) -> dict[Any, str]:
        names = {}
        for id, entry in index.categories.items():
            thing, colon, part = str(entry.get("name", id)).partition(":")
            names[id] = f"{_category_words(part)} of the {_category_words(thing)}" if colon else _category_words(thing)
        return names


def _category_words(name: Any) -> str:
    """Replace underscores: "bow_(weapon)" becomes "bow (weapon)"."""
    return " ".join(str(name).replace("_", " ").split())


class OwnCocoReader(CocoReader):
    """COCO-JSON as labelling tools export it (CVAT, Label Studio, Roboflow, …).

    A split is a file or folder with its name. The split `all` is a file without one, or the only file in the root.
    """

    candidates = (
        "annotations/instances_{split}.json",
        "{split}/_annotations.coco.json",
        "{split}.json",
        "annotations/{split}.json",
        "instances_{split}.json",
    )
    candidates_of_all = (
        "annotations.json",
        "_annotations.coco.json",
        "result.json",
        "annotations/instances_default.json",
        "instances_default.json",
    )

    def find_annotations(self) -> Path:
        split = self.source.split
        candidates = [name.format(split=own) for own in split_names(split) for name in self.candidates]
        if split == "all":
            candidates += [*self.candidates_of_all, *self.only_file(".json")]
        return self.annotation_file(*candidates)

    def image_folders(self) -> tuple[str, ...]:
        own = [folder for name in split_names(self.source.split) for folder in (f"images/{name}", name)]
        return (str(self.path.parent.absolute()), "images", *own, "", "images/default")
