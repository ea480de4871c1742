"""The user's own YOLO-seg dataset: `data.yaml`, images, and a text file of normalised polygons for each.

Contract: one record per image; one without a text file shows nothing, as in YOLO; a text file without an image is
counted. A line of five numbers is a box without a mask. Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...coco_masks import short
from ..records import BAD_BOX, BAD_MASK, MISSING_IMAGE, NOT_UTF8, UNKNOWN_CATEGORY, BadEntry, Record, Region, SkipLog
from .reader import IMAGE_SUFFIXES, ImageFinder, Reader, Source, files_below

CLASSES_FILE = "classes.txt"  # which some tools write among the labels
BOX_FIELDS = 5  # class, centre x, centre y, width, height


class YoloReader(Reader):
    """`data.yaml` (or any YAML named with `annotations`) with `names` and a folder of images per split."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.yaml_file = self.annotation_file("data.yaml", "dataset.yaml", "*.yaml", "*.yml")
        try:
            settings = yaml.safe_load(self.yaml_file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.yaml_file}: is not YAML ({error})") from error
        names = settings.get("names") if isinstance(settings, dict) else None
        if not isinstance(names, list | dict):
            raise ValueError(f"{self.yaml_file}: names is {short(names)}: expected a list or a mapping of classes")
        self.names = {int(k): str(v) for k, v in (names.items() if isinstance(names, dict) else enumerate(names))}
        self.folder = self._images(settings)
        self.finder = ImageFinder(source, (str(self.folder.absolute()),))

    def _images(self, settings: dict[str, Any]) -> Path:
        split = self.source.split
        named = settings.get(split) or (settings.get("valid") if split == "val" else None)
        if named is not None and not isinstance(named, str):
            raise ValueError(f"{self.yaml_file}: {split} is {short(named)}: expected one folder")
        base = self.yaml_file.parent
        candidates = [self.source.images] if self.source.images else []
        if named:
            # Exports are unpacked elsewhere than their `path` says, and some begin with "../" all the same.
            candidates += [base / str(settings.get("path") or "") / named, base / named, base / named.lstrip("./")]
        candidates += [base / "images" / split, base / split / "images"]
        for folder in candidates:
            if folder.is_dir():
                return folder
        raise ValueError(
            f"--split: got {split!r}, expected a folder of images, none of {short(list(map(str, candidates)))}"
        )

    def tasks(self, log: SkipLog) -> Sequence[Path]:
        images = files_below(self.folder, IMAGE_SUFFIXES)
        labels = _beside(self.folder / "any.jpg").parent
        # Where labels lie beside their images, a text file may be anything.
        if labels != self.folder and labels.is_dir():
            known = {_beside(image) for image in images} | {labels / CLASSES_FILE}
            log.skip_many(MISSING_IMAGE, [str(p) for p in files_below(labels, (".txt",)) if p not in known])
        return images

    def records(self, task: Path, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(str(task.absolute()))
        labels = _beside(task)
        regions = []
        try:
            lines = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
        except UnicodeDecodeError as error:
            raise BadEntry(NOT_UTF8, f"{labels}: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                regions.append(self._region(line.split(), size, f"{task.stem}/{number}"))
            except BadEntry as error:
                log.skip(error.reason, f"{labels}, line {number}: {error.detail}")
        yield Record(path, size, task.stem, tuple(regions), present=frozenset(r.category for r in regions))

    def _region(self, fields: list[str], size: tuple[int, int], id: str) -> Region:
        h, w = size
        try:
            label, numbers = int(float(fields[0])), np.array(fields[1:], dtype=np.float64)
        except (ValueError, OverflowError) as error:
            raise BadEntry(BAD_MASK, f"{short(' '.join(fields))}: expected numbers") from error
        if label not in self.names:
            raise BadEntry(UNKNOWN_CATEGORY, f"got {label}, expected one of {len(self.names)} in {self.yaml_file.name}")
        if len(fields) == BOX_FIELDS:
            x, y, width, height = (numbers * (w, h, w, h)).tolist()
            if not (width > 0 and height > 0):
                raise BadEntry(BAD_BOX, f"got {short(fields)}")
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            return Region(None, self.names[label], box, id=id)
        if numbers.size % 2 or numbers.size < 6:
            raise BadEntry(BAD_MASK, f"{numbers.size} numbers: expected x, y of at least three points")
        polygon = (numbers.reshape(-1, 2) * (w, h)).ravel().tolist()
        return Region({"size": [h, w], "polygons": [polygon]}, self.names[label], id=id)


def _beside(image: Path) -> Path:
    """The text file of an image: the last "images" of its path is "labels" there."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")
