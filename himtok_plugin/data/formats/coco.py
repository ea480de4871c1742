"""COCO instances and everything in the same layout: LVIS, PACO, COCO stuff as JSON, the user's own COCO-JSON.

Contract: one record per image, with one region per annotation; crowds are included and marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from himtok_plugin.data.annotation_values import annotated_size, id_text, normal_id
from himtok_plugin.data.byte_ranges import read_json_at
from himtok_plugin.data.records import Record, Region
from himtok_plugin.data.skip_log import BAD_ENTRY, AnnotationError, SkipLog
from himtok_plugin.files.splits import SPLITS, find_split, split_names

from .coco_index import CocoIndex, ImageClasses, annotation_to_region
from .image_finder import ImageFinder
from .label_maps import STUFF_MAPS, StuffMapsReader
from .reader import ALL, Reader, Source

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
        if self.path.is_dir():
            raise ValueError(f"--annotations: got {str(self.path)!r}, a folder, expected a file")
        self.finder = ImageFinder(source, self.image_folders(), self.split_of_images())
        self.names: dict[Any, str] = {}
        self.crowds_are_objects = False

    def find_annotations(self) -> Path:
        return self.annotation_file(*(name.format(split=self.source.split) for name in self.candidates))

    def image_folders(self) -> tuple[str, ...]:
        split = self.source.split
        below = (f"{split}2017", f"{split}2014", split)
        return (*below, *(f"images/{name}" for name in below), "images", "", f"../{below[0]}", f"../{below[1]}")

    def split_of_images(self) -> str | None:
        """The split whose images lie in a folder of its name; None: the dataset has other splits than its images."""
        return None

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        index = CocoIndex.read(self.path, log)
        if not index.categories and not self.source.classes:
            found = f" that can be read ({log.entries[-1][1]})" if log.entries else ""
            raise ValueError(f"{self.path}: has no categories{found}: expected a file in COCO's layout, or --classes")
        self.names = {**self.category_names(index), **index.given_names(self.source.classes, log)}
        self.crowds_are_objects = index.crowds.are_objects(self.source.crowds, self.path, log)
        return index.image_items()

    def category_names(self, index: CocoIndex) -> dict[Any, str]:
        return index.names()

    def image_name(self, image: dict[str, Any]) -> Any:
        return image.get("file_name")

    def annotated_size(self, image: dict[str, Any], log: SkipLog) -> tuple[int, int] | None:
        return annotated_size(image.get("height"), image.get("width"), log, self.path.name)

    def absent(self, image: dict[str, Any]) -> frozenset[str] | None:
        """The classes that the entry states to be absent; None: all without an annotation."""
        return None

    def not_exhaustive(self, image: dict[str, Any]) -> frozenset[str]:
        """The classes of which the entry states that not every object is annotated."""
        return frozenset()

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        where, annotations = item
        image = read_json_at(self.path, where)
        name = f"image {image.get('id')}"
        try:
            path, size = self.finder.find(self.image_name(image), self.annotated_size(image, log))
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
                region = annotation_to_region(annotation, self.names, size, self.crowds_are_objects)
                regions.append(region)
            except AnnotationError as error:
                log.add(error.reason, f"{name}, annotation at byte {place[0]}: {error.detail}")
            classes.add(annotation, region)
        yield Record(
            path,
            size,
            id_text(image.get("id")),
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
        return {id: _category_words(entry.get("name") or id) for id, entry in index.categories.items()}

    def image_name(self, image: dict[str, Any]) -> Any:
        url = image.get("coco_url")
        return image.get("file_name") or ("/".join(url.split("/")[-2:]) if isinstance(url, str) else None)

    def _names_of(self, ids: Any) -> frozenset[str]:
        known = map(normal_id, ids if isinstance(ids, list) else ())  # null in some exports
        return frozenset(self.names[id] for id in known if id in self.names)

    def absent(self, image: dict[str, Any]) -> frozenset[str]:
        return self._names_of(image.get("neg_category_ids"))

    def not_exhaustive(self, image: dict[str, Any]) -> frozenset[str]:
        return self._names_of(image.get("not_exhaustive_category_ids"))


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
            thing, colon, part = str(entry.get("name") or id).partition(":")
            names[id] = f"{_category_words(part)} of the {_category_words(thing)}" if colon else _category_words(thing)
        return names


def _category_words(name: Any) -> str:
    """Replace underscores: "bow_(weapon)" becomes "bow (weapon)"."""
    return " ".join(str(name).replace("_", " ").split())


class OwnCocoReader(CocoReader):
    """COCO-JSON as labelling tools export it (CVAT, Label Studio, Roboflow, …).

    A split is a file or folder with its name. The split `all` is a file without one, or else all files of splits and
    of CVAT's subsets, or the only file in the root.
    """

    candidates = (
        "annotations/instances_{split}.json",
        "{split}/_annotations.coco.json",
        "{split}.json",
        "annotations/{split}.json",
        "instances_{split}.json",
    )
    candidates_of_all = ("annotations.json", "_annotations.coco.json", "result.json")
    files_of_all = ("annotations/instances_*.json", "instances_*.json", "*/_annotations.coco.json")

    def find_annotations(self) -> Path:
        split = self.source.split
        candidates = [name.format(split=own) for own in split_names(split) for name in self.candidates]
        return self.annotation_file(*candidates, *(self.candidates_of_all if split == ALL else ()))

    @classmethod
    def parts(cls, source: Source, splits: Sequence[str]) -> list[Source]:
        for pattern in cls.files_of_all:
            if files := sorted(source.root.glob(pattern)):
                return [replace(source, annotations=path) for path in files]
        known = cls.files_with_split(source.root)
        own = [path for split in splits for path in known.get(split, ())] or list(source.root.glob("*.json"))
        return [replace(source, annotations=path) for path in own] if own and (known or len(own) == 1) else []

    @classmethod
    def files_with_split(cls, root: Path) -> dict[str, list[Path]]:
        """Split -> its files in the root or its `annotations`, such as `train.json`."""
        found: dict[str, list[Path]] = {}
        for path in (*sorted(root.glob("*.json")), *sorted(root.glob("annotations/*.json"))):
            if split := find_split(path.stem, SPLITS):
                found.setdefault(split, []).append(path)
        return found

    def subset(self) -> str:
        """The split or CVAT's subset that the file is called after; empty if there is none."""
        own = self.path.parent.name if self.path.stem.startswith("_annotations") else self.path.stem
        own = own.removeprefix("instances_")
        return "" if own == self.path.stem and not find_split(own, SPLITS) else own

    def image_folders(self) -> tuple[str, ...]:
        names = split_names(self.source.split) if self.source.split != ALL else ()
        own = [folder for name in (self.subset(), *names) if name for folder in (f"images/{name}", name)]
        return (str(self.path.parent.absolute()), *own, "images", "", "images/default")

    def split_of_images(self) -> str | None:
        return find_split(self.subset() or self.source.split, SPLITS)
