"""The user's own YOLO-seg dataset: `data.yaml`, images, and a text file of normalised polygons for each.

Contract: one record per image; one without a text file shows nothing, as in YOLO; a text file without an image is
counted. A line of five numbers is a box without a mask. A split is a folder, a `.txt` list of images, or several of
these. Does not know prompts and rows.
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
    BadEntry,
    Record,
    Region,
    SkipLog,
)
from himtok_plugin.validation import abridged

from .reader import IMAGE_SUFFIXES, ImageFinder, Reader, Source, files_below, find_path, split_names

LIST = ".txt"
CLASSES_FILE = "classes.txt"  # which some tools write among the labels
BOX_FIELDS = 5  # class, centre x, centre y, width, height


class YoloReader(Reader):
    """`data.yaml` (or any YAML named with `annotations`) with `names` and, per split, where its images are."""

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
        # Lists name files that may not be there, from below the root or from anywhere.
        self.finder = ImageFinder(replace(source, images=None))

    def _sources(self, settings: dict[str, Any]) -> list[Path]:
        """Folders of images and lists of them."""
        split, base = self.source.split, self.yaml_file.parent
        if self.source.images is not None:
            return [find_path(self.source.root, self.source.images, (), "images")]
        named = next((settings[name] for name in split_names(split) if settings.get(name)), [])
        named = [named] if isinstance(named, str) else named
        if not isinstance(named, list) or not all(isinstance(entry, str) and entry for entry in named):
            raise ValueError(
                f"{self.yaml_file}: {split} is {abridged(named)}: expected a folder, a .txt list, or a list of these"
            )
        own = [folder for name in split_names(split) for folder in (base / "images" / name, base / name / "images")]
        # Exports are unpacked elsewhere than their `path` says, and some begin with "../" all the same.
        tops = (base / str(settings.get("path") or ""), base)
        places = [[*(top / entry for top in tops), base / entry.lstrip("./")] for entry in named] or [own]
        if len(named) == 1 and not named[0].endswith(LIST):
            places[0] += own
        return [self._first_of(candidates) for candidates in places]

    def _first_of(self, candidates: list[Path]) -> Path:
        for path in candidates:
            if path.is_dir() or (path.suffix == LIST and path.is_file()):
                return path
        tried = abridged(list(map(str, candidates)))
        raise ValueError(f"--split: got {self.source.split!r}, expected a folder or list of images, none of {tried}")

    def tasks(self, log: SkipLog) -> Sequence[Path]:
        images: dict[Path, None] = {}
        for source in self.sources:
            for image in self._listed(source) if source.is_file() else self._below(source, log):
                if image in images:
                    log.skip(REPEATED_ID, f"{source}: {image}")
                images[image] = None
        return list(images)

    def _below(self, folder: Path, log: SkipLog) -> list[Path]:
        images = files_below(folder, IMAGE_SUFFIXES)
        labels = _beside(folder / "any.jpg").parent
        # Where labels lie beside their images, a text file may be anything.
        if labels != folder and labels.is_dir():
            known = {_beside(image) for image in images} | {labels / CLASSES_FILE}
            log.skip_many(MISSING_IMAGE, [str(p) for p in files_below(labels, (".txt",)) if p not in known])
        return images

    def _listed(self, path: Path) -> list[Path]:
        """The images of a list, relative to it or to the root; those that are nowhere too, to be told when read."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: is not UTF-8 ({error})") from error
        images = []
        for line in filter(None, map(str.strip, lines)):
            candidates = [top / line for top in (path.parent, self.yaml_file.parent, self.source.root)]
            images.append(next((image for image in candidates if image.is_file()), candidates[0]))
        return images

    def records(self, task: Path, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(str(task.absolute()))
        labels = _beside(task)
        regions, present, incomplete, absent = [], set(), set(), None
        try:
            lines = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
        except UnicodeDecodeError as error:
            raise BadEntry(NOT_UTF8, f"{labels}: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            fields, category = line.split(), None
            try:
                category = self._category(fields[0])
                present.add(category)
                regions.append(self._region(fields, category, size, f"{task.stem}/{number}"))
                if regions[-1].mask is None:
                    incomplete.add(category)
            except BadEntry as error:
                log.skip(error.reason, f"{labels}, line {number}: {error.detail}")
                if category is not None:
                    incomplete.add(category)
                elif error.reason != UNKNOWN_CATEGORY:  # it may be anything
                    incomplete, absent = set(self.names.values()), frozenset()
        yield Record(
            path,
            size,
            task.stem,
            tuple(regions),
            present=frozenset(present),
            absent=absent,
            incomplete_classes=frozenset(incomplete),
        )

    def _category(self, field: str) -> str:
        try:
            label = int(float(field))
        except (ValueError, OverflowError) as error:
            raise BadEntry(BAD_MASK, f"{field!r:.80}: expected the number of a class") from error
        if label not in self.names:
            raise BadEntry(UNKNOWN_CATEGORY, f"got {label}, expected one of {len(self.names)} in {self.yaml_file.name}")
        return self.names[label]

    def _region(self, fields: list[str], category: str, size: tuple[int, int], id: str) -> Region:
        h, w = size
        try:
            numbers = np.array(fields[1:], dtype=np.float64)
        except ValueError as error:
            raise BadEntry(BAD_MASK, f"{abridged(' '.join(fields))}: expected numbers") from error
        if len(fields) == BOX_FIELDS:
            x, y, width, height = (numbers * (w, h, w, h)).tolist()
            if not (width > 0 and height > 0):
                raise BadEntry(BAD_BOX, f"got {abridged(fields)}")
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            return Region(None, category, box, id=id)
        if numbers.size % 2 or numbers.size < 6:
            raise BadEntry(BAD_MASK, f"{numbers.size} numbers: expected x, y of at least three points")
        polygon = (numbers.reshape(-1, 2) * (w, h)).ravel().tolist()
        return Region({"size": [h, w], "polygons": [polygon]}, category, id=id)


def _beside(image: Path) -> Path:
    """The text file of an image: the last "images" of its path is "labels" there."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")
