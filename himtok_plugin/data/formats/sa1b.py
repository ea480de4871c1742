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

from himtok_plugin.data.annotation_values import annotated_size
from himtok_plugin.data.byte_ranges import parse_json, parse_json_file
from himtok_plugin.data.records import Record, Region
from himtok_plugin.data.skip_log import (
    BAD_ENTRY,
    NOT_JSON,
    TOO_LARGE,
    UNREADABLE_FILE,
    WRONG_SIZE,
    AnnotationError,
    SkipLog,
)
from himtok_plugin.masks.rle import check_size
from himtok_plugin.validation import abridged

from .coco_index import segmentation_mask, xywh_to_xyxy
from .image_finder import ImageFinder
from .reader import Reader, Source, find_path, list_files

MAX_MEMBER = 1 << 28  # bytes; those of SA-1B have about a million
WHOLE_FILE = -1  # in place of the length of a tar file's member


class Sa1bReader(Reader):
    """`*.tar` below the root; unpacked JSON as well."""

    hint = "--category gives all masks a class; all tasks but `masks` need the images unpacked, in --images"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.files: list[Path] = []
        self.finder = ImageFinder(source) if source.images is not None else None

    def _find_files(self, log: SkipLog) -> list[Path]:
        root, given = self.source.root, self.source.annotations
        folder = root if given is None else find_path(root, given, (), "annotations")
        if folder.is_file():
            return [folder]
        if not folder.is_dir():
            raise ValueError(f"--root: got {str(folder)!r}, expected a folder")
        files = list_files(folder, (".tar",), log) or list_files(folder, (".json",), log)
        if not files:
            compressed = list_files(folder, (".gz", ".tgz", ".zst"))
            hint = ": decompress its tar files" if compressed else ""
            raise ValueError(f"{folder}: has neither *.tar nor *.json{hint}")
        return files

    def list_items(self, log: SkipLog) -> Sequence[tuple[int, int, int]]:
        found = []
        self.files = self._find_files(log)
        for i, path in enumerate(self.files):
            if path.suffix.lower() == ".json":
                found.append((i, 0, WHOLE_FILE))
                continue
            before = len(found)
            try:
                with tarfile.open(path, "r:") as archive:
                    while (member := archive.next()) is not None:
                        archive.members = []  # type: ignore[attr-defined] # it would keep every member in memory
                        if member.isfile() and member.name.lower().endswith(".json"):
                            found.append((i, member.offset_data, member.size))
            except (tarfile.TarError, EOFError, ValueError, OSError) as error:
                if len(self.files) == 1 and len(found) == before:
                    raise ValueError(f"{path}: is not an uncompressed tar ({error})") from error
                rest = f", read up to its member {len(found) - before}" if len(found) > before else ""
                log.add(UNREADABLE_FILE, f"{path}: is not an uncompressed tar ({error}){rest}")
        return found

    def read_records(self, item: tuple[int, int, int], log: SkipLog) -> Iterator[Record]:
        file, begin, length = item
        path = self.files[file]
        name = path.name if length == WHOLE_FILE else f"{path.name} at byte {begin}"
        entry = parse_json_file(path) if length == WHOLE_FILE else _parse_member(path, begin, length)
        image = entry.get("image") if isinstance(entry, dict) else None
        annotations = entry.get("annotations") if isinstance(entry, dict) else None
        if not isinstance(image, dict) or not isinstance(annotations, list):
            raise AnnotationError(BAD_ENTRY, f"{name}: expected image and annotations")
        try:
            size = annotated_size(image.get("height"), image.get("width"), log, path.name)
            image_path = None
            if self.finder is not None:
                image_path, size = self.finder.find(image.get("file_name"), size)
            size = size or _size_of_masks(annotations)
            if size is None:
                raise AnnotationError(WRONG_SIZE, "got no height and width, and no mask with a size")
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


def _parse_member(path: Path, begin: int, length: int) -> Any:
    """Parse a member of a tar file by its byte range."""
    name = f"{path.name} at byte {begin}"
    if length > MAX_MEMBER:
        raise AnnotationError(TOO_LARGE, f"{name}: got a member of {length} bytes, expected at most {MAX_MEMBER}")
    with open(path, "rb") as stream:
        stream.seek(begin)
        data = stream.read(length)
    if length != len(data):
        raise AnnotationError(NOT_JSON, f"{name}: the tar is truncated")
    return parse_json(data, name)


def _size_of_masks(annotations: list[Any]) -> tuple[int, int] | None:
    """(h, w) of the first mask in RLE, which has its image's size; None: there is none."""
    for annotation in annotations:
        segmentation = annotation.get("segmentation") if isinstance(annotation, dict) else None
        if isinstance(segmentation, dict) and segmentation.get("size") is not None:
            try:
                return check_size(segmentation["size"])
            except ValueError:
                return None  # its own error says more
    return None


def _annotated_region(annotation: Any, size: tuple[int, int], category: str | None) -> Region:
    if not isinstance(annotation, dict):
        raise AnnotationError(BAD_ENTRY, f"an annotation is {abridged(annotation)}")
    box = annotation.get("bbox")
    mask = segmentation_mask(annotation.get("segmentation"), size)
    return Region(mask, category, None if box is None else xywh_to_xyxy(box), id=str(annotation.get("id", "")))
