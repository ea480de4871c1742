"""The user's own YOLO-seg dataset: `data.yaml`, images, and for each image a text file of normalised polygons.

Contract: one record per image. As in YOLO, an image without a text file has no objects; a text file without an image is
skipped. A line of five numbers is a box without a mask. A split is a folder, a `.txt` list of images, or several of
these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from himtok_plugin.data.records import (
    BAD_BOX,
    BAD_MASK,
    MISSING_IMAGE,
    NOT_UTF8,
    REPEATED_ID,
    UNKNOWN_CATEGORY,
    AnnotationError,
    Record,
    Region,
    SkipLog,
)
from himtok_plugin.validation import abridged

from .reader import IMAGE_SUFFIXES, ImageFinder, Reader, Source, find_path, list_files, split_names

LIST_SUFFIX = ".txt"
CLASSES_FILE = "classes.txt"  # some tools write it beside the labels
BOX_FIELDS = 5  # class, centre x, centre y, width, height


class YoloReader(Reader):
    """`data.yaml` (or the file given as `annotations`) with `names` and the images of each split."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.yaml_file = self.annotation_file("data.yaml", "dataset.yaml", "*.yaml", "*.yml")
        try:
            settings = yaml.safe_load(self.yaml_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.yaml_file}: is not YAML ({error})") from error
        names = settings.get("names") if isinstance(settings, dict) else None
        if not isinstance(names, list | dict):
            raise ValueError(f"{self.yaml_file}: names is {abridged(names)}: expected a list or a mapping of classes")
        self.names = {int(k): str(v) for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
        self.sources = self._sources(settings)
        # Lists may contain files outside the root, and missing ones.
        self.finder = ImageFinder(replace(source, images=None))

    def _sources(self, settings: dict[str, Any]) -> list[Path]:
        """The folders and list files of the split."""
        split, base = self.source.split, self.yaml_file.parent
        if self.source.images is not None:
            return [find_path(self.source.root, self.source.images, (), "images")]
        named: Any = next((settings[name] for name in split_names(split) if settings.get(name)), [])
        named = [named] if isinstance(named, str) else named
        if not isinstance(named, list) or not all(isinstance(entry, str) and entry for entry in named):
            raise ValueError(
                f"{self.yaml_file}: {split} is {abridged(named)}: expected a folder, a .txt list, or a list of these"
            )
        own = [folder for name in split_names(split) for folder in (base / "images" / name, base / name / "images")]
        # The folder is often not where its `path` says, and some exports have "../" in front of each entry.
        tops = (base / str(settings.get("path") or ""), base)
        places = [[*(top / entry for top in tops), base / entry.lstrip("./")] for entry in named] or [own]
        if len(named) == 1 and not named[0].endswith(LIST_SUFFIX):
            places[0] += own
        return [self._first_existing(candidates) for candidates in places]

    def _first_existing(self, candidates: list[Path]) -> Path:
        for path in candidates:
            if path.is_dir() or (path.suffix == LIST_SUFFIX and path.is_file()):
                return path
        tried = abridged(list(map(str, candidates)))
        raise ValueError(f"--split: got {self.source.split!r}, expected a folder or list of images, none of {tried}")

    def list_items(self, log: SkipLog) -> Sequence[Path]:
        images: dict[Path, None] = {}
        for source in self.sources:
            for image in self._read_list(source) if source.is_file() else self._images_in(source, log):
                if image in images:
                    log.add(REPEATED_ID, f"{source}: {image}")
                images[image] = None
        return list(images)

    def _images_in(self, folder: Path, log: SkipLog) -> list[Path]:
        images = list_files(folder, IMAGE_SUFFIXES)
        labels = _label_file(folder / "any.jpg").parent
        # If labels lie beside their images, a text file without an image may be anything.
        if labels != folder and labels.is_dir():
            known = {_label_file(image) for image in images} | {labels / CLASSES_FILE}
            log.add_all(MISSING_IMAGE, [str(p) for p in list_files(labels, (".txt",)) if p not in known])
        return images

    def _read_list(self, path: Path) -> list[Path]:
        """The images of a list, relative to it or to the root. Missing ones are logged when they are read."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is not UTF-8 ({error})") from error
        images = []
        for line in filter(None, map(str.strip, lines)):
            candidates = [top / line for top in (path.parent, self.yaml_file.parent, self.source.root)]
            images.append(next((image for image in candidates if image.is_file()), candidates[0]))
        return images

    def read_records(self, item: Path, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(str(item.absolute()))
        labels = _label_file(item)
        regions: list[Region] = []
        present: set[str] = set()
        incomplete: set[str] = set()
        absent: frozenset[str] | None = None
        try:
            lines = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
        except UnicodeDecodeError as error:
            raise AnnotationError(NOT_UTF8, f"{labels}: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            fields, category = line.split(), None
            try:
                category = self._class_name(fields[0])
                present.add(category)
                regions.append(self._parse_line(fields, category, size, f"{item.stem}/{number}"))
                if regions[-1].mask is None:
                    incomplete.add(category)
            except AnnotationError as error:
                log.add(error.reason, f"{labels}, line {number}: {error.detail}")
                if category is not None:
                    incomplete.add(category)
                elif error.reason != UNKNOWN_CATEGORY:  # the line may be of any class
                    incomplete, absent = set(self.names.values()), frozenset()
        yield Record(
            path,
            size,
            item.stem,
            tuple(regions),
            present=frozenset(present),
            absent=absent,
            incomplete_classes=frozenset(incomplete),
        )

    def _class_name(self, field: str) -> str:
        try:
            label = int(float(field))
        except (ValueError, OverflowError) as error:
            raise AnnotationError(BAD_MASK, f"{field!r:.80}: expected the number of a class") from error
        if label not in self.names:
            raise AnnotationError(
                UNKNOWN_CATEGORY, f"got {label}, expected one of {len(self.names)} in {self.yaml_file.name}"
            )
        return self.names[label]

    def _parse_line(self, fields: list[str], category: str, size: tuple[int, int], id: str) -> Region:
        h, w = size
        try:
            numbers = np.array(fields[1:], dtype=np.float64)
        except ValueError as error:
            raise AnnotationError(BAD_MASK, f"{abridged(' '.join(fields))}: expected numbers") from error
        if len(fields) == BOX_FIELDS:
            x, y, width, height = (numbers * (w, h, w, h)).tolist()
            if not (width > 0 and height > 0):
                raise AnnotationError(BAD_BOX, f"got {abridged(fields)}")
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            return Region(None, category, box, id=id)
        if numbers.size % 2 or numbers.size < 6:
            raise AnnotationError(BAD_MASK, f"{numbers.size} numbers: expected x, y of at least three points")
        polygon = (numbers.reshape(-1, 2) * (w, h)).ravel().tolist()
        return Region({"size": [h, w], "polygons": [polygon]}, category, id=id)


def _label_file(image: Path) -> Path:
    """The text file of an image: in its path, "labels" replaces the last "images"."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")
