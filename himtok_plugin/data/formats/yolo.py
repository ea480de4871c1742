"""The user's own YOLO-seg dataset: `data.yaml`, images, and for each image a text file of normalised polygons.

Contract: one record per image. As in YOLO, an image without a text file has no objects; a text file without an image is
skipped. A line of five numbers is a box without a mask. A split is a folder, a `.txt` list of images, or several of
these; without a split, all of them are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from himtok_plugin.data.records import Record, Region
from himtok_plugin.data.skip_log import (
    BAD_BOX,
    BAD_MASK,
    MISSING_IMAGE,
    MISSING_SPLIT,
    REPEATED_ID,
    UNKNOWN_CATEGORY,
    UNREADABLE_FOLDER,
    AnnotationError,
    SkipLog,
)
from himtok_plugin.files.finder import FileFinder, find_in_any_case
from himtok_plugin.files.splits import find_split, split_names
from himtok_plugin.files.text import read_text
from himtok_plugin.validation import abridged

from .image_finder import ImageFinder
from .reader import ALL, IMAGE_SUFFIXES, Reader, Source, find_path, list_files, read_annotation_text

SPLITS = ("train", "val", "test")
LIST_SUFFIX = ".txt"
CLASSES_FILE = "classes.txt"  # some tools write it beside the labels
_FOLDERS_OF_LABELS = {"images": "labels", "Images": "Labels", "IMAGES": "LABELS"}
BOX_FIELDS = 5  # class, centre x, centre y, width, height


class YoloReader(Reader):
    """`data.yaml` (or the file given as `annotations`) with `names` and the images of each split, or `classes.txt`."""

    hint = "a line of a YOLO polygon is: class x1 y1 x2 y2 x3 y3 …; five numbers are a box"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        without_file = ["."] if source.classes else []
        self.yaml_file = self.annotation_file(
            "data.yaml", "dataset.yaml", "*.yaml", "*.yml", CLASSES_FILE, *without_file
        )
        self.folder = self.yaml_file if self.yaml_file.is_dir() else self.yaml_file.parent
        settings = _read_settings(self.yaml_file)
        self.names = dict(source.classes) if source.classes else _read_names(self.yaml_file, settings.get("names"))
        self.missing: list[str] = []
        self.sources = self._sources(settings)
        # Lists may contain files outside the root, and missing ones.
        self.finder = ImageFinder(replace(source, images=None))
        self.files = FileFinder([self.folder], IMAGE_SUFFIXES)

    def _sources(self, settings: dict[str, Any]) -> list[Path]:
        """The folders and list files of the split."""
        if self.source.images is not None:
            return [find_path(self.source.root, self.source.images, (), "images")]
        if self.source.split != ALL:
            return self._sources_of_split(settings, self.source.split)
        found = []
        errors: list[ValueError] = []
        for split in SPLITS:
            try:
                found += self._sources_of_split(settings, split)
            except ValueError as error:
                errors.append(error)
                if self._named(settings, split):
                    self.missing.append(str(error))
        if not found and (everything := find_in_any_case(self.folder, "images")) is not None:
            return [everything]
        if not found:
            raise errors[0]
        return list(dict.fromkeys(found))

    @staticmethod
    def _named(settings: dict[str, Any], split: str) -> Any:
        """What the YAML says about a split; an empty list if nothing."""
        return next((value for name, value in settings.items() if find_split(str(name), (split,)) and value), [])

    def _sources_of_split(self, settings: dict[str, Any], split: str) -> list[Path]:
        base = self.folder
        named: Any = self._named(settings, split)
        named = [named] if isinstance(named, str) else named
        if not isinstance(named, list) or not all(isinstance(entry, str) and entry for entry in named):
            raise ValueError(
                f"{self.yaml_file}: {split} is {abridged(named)}: expected a folder, a .txt list, or a list of these"
            )
        own = [base / form.format(name) for name in split_names(split) for form in ("images/{}", "{}/images")]
        # The folder is often not where its `path` says, and some exports have "../" in front of each entry.
        tops = (base / str(settings.get("path") or ""), base)
        named = [entry.replace("\\", "/") for entry in named]
        places = [[*(top / entry for top in tops), base / entry.lstrip("./")] for entry in named] or [own]
        if len(named) == 1 and not named[0].endswith(LIST_SUFFIX):
            places[0] += own
        return [self._first_existing(candidates, split) for candidates in places]

    def _first_existing(self, candidates: list[Path], split: str) -> Path:
        for candidate in candidates:
            path = find_in_any_case(self.folder, str(candidate.absolute()))
            path = path or find_in_any_case(self.folder, os.path.relpath(candidate, self.folder))
            if path is not None and (path.is_dir() or (path.suffix.lower() == LIST_SUFFIX and path.is_file())):
                return path
        tried = abridged(list(map(str, candidates)))
        raise ValueError(f"--split: got {split!r}, expected a folder or list of images, none of {tried}")

    def list_items(self, log: SkipLog) -> Sequence[Path]:
        log.add_all(MISSING_SPLIT, self.missing)
        images: dict[Path, None] = {}
        for source in self.sources:
            before = set(images)  # two splits may share images, and then each is read once
            for image in self._read_list(source) if source.is_file() else self._images_in(source, log):
                if image in images and not (self.source.split == ALL and image in before):
                    log.add(REPEATED_ID, f"{source}: {image}")
                images[image] = None
        return list(images)

    def _images_in(self, folder: Path, log: SkipLog) -> list[Path]:
        images = list_files(folder, IMAGE_SUFFIXES, log)
        labels = _label_file(folder / "any.jpg").parent
        # If labels lie beside their images, a text file without an image may be anything.
        if labels != folder and labels.is_dir():
            known = {_label_file(image) for image in images} | {labels / CLASSES_FILE}
            own = SkipLog()  # of labels, only folders: a file that cannot be read is logged when its image is read
            listed = list_files(labels, (".txt",), own)
            log.add_all(UNREADABLE_FOLDER, [detail for reason, detail in own.entries if reason == UNREADABLE_FOLDER])
            log.add_all(MISSING_IMAGE, [str(path) for path in listed if path not in known])
        return images

    def _read_list(self, path: Path) -> list[Path]:
        """The images of a list, relative to it or to the root. Missing ones are logged when they are read."""
        images = []
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
            candidates = [top / line for top in (path.parent, self.folder, self.source.root)]
            image = next((image for image in candidates if os.path.isfile(image)), None)
            if image is None:
                try:
                    image = self.files.find(line)
                except ValueError:  # missing or ambiguous, which is logged when it is read
                    image = candidates[0]
            images.append(image)
        return images

    def read_records(self, item: Path, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(str(item.absolute()))
        labels = _label_file(item)
        regions: list[Region] = []
        present: set[str] = set()
        incomplete: set[str] = set()
        absent: frozenset[str] | None = None
        lines = read_annotation_text(labels).splitlines() if os.path.lexists(labels) else []
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
            label = int(number := float(field))
            if label != number:
                raise ValueError(field)
        except (ValueError, OverflowError) as error:
            raise AnnotationError(BAD_MASK, f"{field!r:.80}: expected the number of a class") from error
        if label not in self.names:
            raise AnnotationError(UNKNOWN_CATEGORY, f"got {label}, expected a class of {self.yaml_file} or --classes")
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


def _read_names(path: Path, names: Any) -> dict[int, str]:
    """Class number -> name, from a list or mapping."""
    try:
        if isinstance(names, list | dict):
            pairs = names.items() if isinstance(names, dict) else enumerate(names)
            return {int(number): str(number if name is None else name) for number, name in pairs}
    except (TypeError, ValueError):
        pass  # a key that is no number
    raise ValueError(
        f"{path}: names is {abridged(names)}: expected a list of classes or a mapping of numbers to them, or --classes"
    )


def _read_settings(path: Path) -> dict[str, Any]:
    """The content of `data.yaml`; of a list of classes, which Label Studio writes instead, its names.

    A dataset without both has its classes from `--classes`; then the path is its folder.
    """
    if path.is_dir():
        return {}
    text = read_text(path)
    if path.suffix.lower() == LIST_SUFFIX:
        return {"names": [line.strip() for line in text.splitlines() if line.strip()]}
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path}: is not YAML ({error})") from error
    return settings if isinstance(settings, dict) else {}


def _label_file(image: Path) -> Path:
    """The text file of an image: in its path, "labels" replaces the last "images"."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] in _FOLDERS_OF_LABELS:
            parts[i] = _FOLDERS_OF_LABELS[parts[i]]
            break
    return Path(*parts).with_suffix(".txt")
