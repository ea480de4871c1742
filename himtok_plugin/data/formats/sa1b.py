"""SA-1B: tar files of images and JSON, read as they are; masks without names.

Contract: one record per JSON. A tar is gone through once to find its members, whose places are kept (24 bytes each);
they are then read by seeking, so a packed tar (`.tar.gz`) is refused. Images within a tar have no path: rows other than
masks alone need them beside (`--images`). Does not know prompts and rows.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.byte_ranges import parse_json
from himtok_plugin.data.records import BAD_ENTRY, NOT_JSON, BadEntry, Record, Region, SkipLog, size_of
from himtok_plugin.validation import abridged

from .coco_index import corners, segmentation_mask
from .reader import ImageFinder, Reader, Source, files_below


class Sa1bReader(Reader):
    """`*.tar` below the root; unpacked JSON as well."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.files = self._files()
        self.finder = ImageFinder(source) if source.images is not None else None

    def _files(self) -> list[Path]:
        folder = self.source.annotations or self.source.root
        if folder.is_file():
            return [folder]
        if not folder.is_dir():
            raise ValueError(f"--root: got {str(folder)!r}, expected a folder")
        files = files_below(folder, (".tar",)) or files_below(folder, (".json",))
        if not files:
            packed = files_below(folder, (".gz", ".tgz", ".zst"))
            hint = ": unpack its tar files" if packed else ""
            raise ValueError(f"{folder}: holds neither *.tar nor *.json{hint}")
        return files

    def tasks(self, log: SkipLog) -> Sequence[tuple[int, int, int]]:
        found = []
        for i, path in enumerate(self.files):
            if path.suffix == ".json":
                found.append((i, 0, -1))
                continue
            try:
                with tarfile.open(path, "r:") as archive:
                    while (member := archive.next()) is not None:
                        archive.members = []  # else it remembers each one
                        if member.isfile() and member.name.endswith(".json"):
                            found.append((i, member.offset_data, member.size))
            except (tarfile.TarError, EOFError) as error:
                raise ValueError(f"{path}: is not a plain tar ({error})") from error
        return found

    def records(self, task: tuple[int, int, int], log: SkipLog) -> Iterator[Record]:
        file, begin, length = task
        path = self.files[file]
        name = path.name if length < 0 else f"{path.name} at byte {begin}"
        with open(path, "rb") as stream:
            stream.seek(begin)
            data = stream.read(length)
        if 0 <= length != len(data):
            raise BadEntry(NOT_JSON, f"{name}: the tar is cut off")
        entry = parse_json(data, name)
        image = entry.get("image") if isinstance(entry, dict) else None
        annotations = entry.get("annotations") if isinstance(entry, dict) else None
        if not isinstance(image, dict) or not isinstance(annotations, list):
            raise BadEntry(BAD_ENTRY, f"{name}: expected image and annotations")
        try:
            size = size_of(image.get("height"), image.get("width"))
            where = self.finder.find(image.get("file_name"), size)[0] if self.finder is not None else None
        except BadEntry as error:
            raise BadEntry(error.reason, f"{name}: {error.detail}") from error
        regions = []
        for annotation in annotations:
            try:
                regions.append(_region(annotation, size, self.source.category))
            except BadEntry as error:
                log.skip(error.reason, f"{name}: {error.detail}")
        # Where all have one class, each that cannot be used is one of it.
        category = self.source.category if len(regions) < len(annotations) else None
        incomplete = frozenset(filter(None, [category]))
        yield Record(where, size, str(image.get("image_id")), tuple(regions), incomplete_classes=incomplete)


def _region(annotation: Any, size: tuple[int, int], category: str | None) -> Region:
    if not isinstance(annotation, dict):
        raise BadEntry(BAD_ENTRY, f"an annotation is {abridged(annotation)}")
    box = annotation.get("bbox")
    mask = segmentation_mask(annotation.get("segmentation"), size)
    return Region(mask, category, None if box is None else corners(box), id=str(annotation.get("id", "")))
