"""SA-1B: tar files of images and JSON, read without unpacking; masks without classes.

Contract: one record per JSON. Each tar file is scanned once for its members, whose byte ranges are kept (24 bytes
each); members are then read by seeking, so a compressed tar file (`.tar.gz`) is refused. Images inside a tar file have
no path: all tasks but `masks` need them unpacked (`--images`).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.byte_ranges import parse_json
from himtok_plugin.data.records import BAD_ENTRY, NOT_JSON, AnnotationError, Record, Region, SkipLog, parse_size
from himtok_plugin.validation import abridged

from .coco_index import segmentation_mask, xywh_to_xyxy
from .reader import ImageFinder, Reader, Source, list_files


class Sa1bReader(Reader):
    """`*.tar` below the root; unpacked JSON as well."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.files = self._find_files()
        self.finder = ImageFinder(source) if source.images is not None else None

    def _find_files(self) -> list[Path]:
        folder = self.source.annotations or self.source.root
        if folder.is_file():
            return [folder]
        if not folder.is_dir():
            raise ValueError(f"--root: got {str(folder)!r}, expected a folder")
        files = list_files(folder, (".tar",)) or list_files(folder, (".json",))
        if not files:
            compressed = list_files(folder, (".gz", ".tgz", ".zst"))
            hint = ": decompress its tar files" if compressed else ""
            raise ValueError(f"{folder}: has neither *.tar nor *.json{hint}")
        return files

    def list_items(self, log: SkipLog) -> Sequence[tuple[int, int, int]]:
        found = []
        for i, path in enumerate(self.files):
            if path.suffix == ".json":
                found.append((i, 0, -1))
                continue
            try:
                with tarfile.open(path, "r:") as archive:
                    while (member := archive.next()) is not None:
                        archive.members = []  # type: ignore[attr-defined] # it would keep every member in memory
                        if member.isfile() and member.name.endswith(".json"):
                            found.append((i, member.offset_data, member.size))
            except (tarfile.TarError, EOFError) as error:
                raise ValueError(f"{path}: is not an uncompressed tar ({error})") from error
        return found

    def read_records(self, item: tuple[int, int, int], log: SkipLog) -> Iterator[Record]:
        file, begin, length = item
        path = self.files[file]
        name = path.name if length < 0 else f"{path.name} at byte {begin}"
        with open(path, "rb") as stream:
            stream.seek(begin)
            data = stream.read(length)
        if 0 <= length != len(data):
            raise AnnotationError(NOT_JSON, f"{name}: the tar is truncated")
        entry = parse_json(data, name)
        image = entry.get("image") if isinstance(entry, dict) else None
        annotations = entry.get("annotations") if isinstance(entry, dict) else None
        if not isinstance(image, dict) or not isinstance(annotations, list):
            raise AnnotationError(BAD_ENTRY, f"{name}: expected image and annotations")
        try:
            size = parse_size(image.get("height"), image.get("width"))
            image_path = self.finder.find(image.get("file_name"), size)[0] if self.finder is not None else None
        except AnnotationError as error:
            raise AnnotationError(error.reason, f"{name}: {error.detail}") from error
        regions = []
        for annotation in annotations:
            try:
                regions.append(_annotated_region(annotation, size, self.source.category))
            except AnnotationError as error:
                log.add(error.reason, f"{name}: {error.detail}")
        # With `category`, a skipped annotation is of that class as well.
        category = self.source.category if len(regions) < len(annotations) else None
        incomplete = frozenset(filter(None, [category]))
        yield Record(image_path, size, str(image.get("image_id")), tuple(regions), incomplete_classes=incomplete)


def _annotated_region(annotation: Any, size: tuple[int, int], category: str | None) -> Region:
    if not isinstance(annotation, dict):
        raise AnnotationError(BAD_ENTRY, f"an annotation is {abridged(annotation)}")
    box = annotation.get("bbox")
    mask = segmentation_mask(annotation.get("segmentation"), size)
    return Region(mask, category, None if box is None else xywh_to_xyxy(box), id=str(annotation.get("id", "")))
