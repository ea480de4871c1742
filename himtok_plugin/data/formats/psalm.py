"""Referring segmentation as PSALM has it: entries of `image_info`, `anns` and `instruction`, as JSON or Parquet.

Contract: an entry is one record with one query, whose targets are all its annotations; no annotation, or one without
segments, means no target.
Fields may be JSON text, and may have the names of the hubs' RefCOCO (`raw_image_info`, `raw_anns`, `raw_sentences`).
Pictures within a Parquet are written into the folder named with `images`. Does not know prompts and rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.records import (
    BAD_ENTRY,
    MISSING_IMAGE,
    BadEntry,
    Query,
    Record,
    Region,
    SkipLog,
    size_of,
)
from himtok_plugin.validation import abridged

from .coco_index import corners, segmentation_mask
from .entries import PARQUET, EntryFiles, files_of, first_of
from .reader import ImageFinder, Reader, Source
from .refer import IMAGE_FOLDERS


class PsalmReader(Reader):
    """`*<split>*.json`, `.jsonl` or `.parquet`, below the root or its `data/`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        names = [f"{folder}*{suffix}" for suffix in (".json", ".jsonl", PARQUET) for folder in ("", "data/")]
        files = files_of(source.root, source.annotations, names, source.split, one_dataset=True)
        self.files = EntryFiles(files, fields=("image_info", "raw_image_info"))
        self.extract_to: Path | None = None
        if any(path.suffix == PARQUET for path in self.files.paths):
            self.tasks_per_call = 1  # each is a whole group of rows
            if source.images is not None:
                self.extract_to = _below(source)
                self.extract_to.mkdir(parents=True, exist_ok=True)
        self.finder = ImageFinder(source, IMAGE_FOLDERS)

    def tasks(self, log: SkipLog) -> Sequence[Any]:
        return self.files.tasks(log)

    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        for name, entry in self.files.load(task):
            if entry.get("split") not in (None, self.source.split):
                continue
            try:
                yield self._record(name, entry)
            except BadEntry as error:
                log.skip(error.reason, f"{name}: {error.detail}")

    def _record(self, name: str, entry: dict[str, Any]) -> Record:
        info = _parsed(first_of(entry, "image_info", "raw_image_info"), dict)
        annotations = _parsed(first_of(entry, "anns", "raw_anns"), (list, dict))
        annotations = [annotations] if isinstance(annotations, dict) else annotations
        texts = _texts(_parsed(first_of(entry, "instruction", "raw_sentences", "sentences"), list))
        picture = entry.get("image")
        if self.extract_to is not None and isinstance(picture, dict) and picture.get("bytes"):
            _extract(picture["bytes"], self.extract_to / Path(str(info.get("file_name"))).name)
        try:
            path, size = self.finder.find(info.get("file_name"), size_of(info.get("height"), info.get("width")))
        except BadEntry as error:
            if error.reason == MISSING_IMAGE and isinstance(picture, dict) and picture.get("bytes"):
                raise BadEntry(MISSING_IMAGE, f"{error.detail}: it is in the Parquet, give --images DIR") from error
            raise
        regions = tuple(_region(annotation, size) for annotation in annotations if not _is_empty(annotation))
        id = str(entry.get("ref_id", entry.get("new_img_id", name)))
        query = Query(texts, tuple(range(len(regions))), id=id)
        present = frozenset(region.category for region in regions if region.category)
        id = str(info.get("id", Path(path).stem))
        # An entry has the referents alone, not what else is in the image, be it of their class.
        return Record(path, size, id, regions, (query,), present=present or None, incomplete_classes=present)


def _below(source: Source) -> Path:
    return source.images if source.images.is_absolute() or source.images.exists() else source.root / source.images


def _parsed(value: Any, kind: Any) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadEntry(BAD_ENTRY, f"{abridged(value)} is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise BadEntry(BAD_ENTRY, f"got {abridged(value)}")
    return value


def _texts(sentences: list[Any]) -> tuple[str, ...]:
    texts = []
    for sentence in sentences:
        if isinstance(sentence, dict):
            tokens = sentence.get("tokens")
            joined = " ".join(map(str, tokens)) if isinstance(tokens, list) else None
            sentence = sentence.get("sent") or sentence.get("raw") or joined
        if not isinstance(sentence, str) or not sentence.strip():
            raise BadEntry(BAD_ENTRY, f"instruction holds {abridged(sentence)}: expected a text")
        texts.append(" ".join(sentence.split()))
    if not texts:
        raise BadEntry(BAD_ENTRY, "instruction is empty")
    return tuple(texts)


def _is_empty(annotation: Any) -> bool:
    """gRefCOCO's annotation for an expression that means nothing in the image."""
    return isinstance(annotation, dict) and annotation.get("segmentation") == []


def _region(annotation: Any, size: tuple[int, int]) -> Region:
    if not isinstance(annotation, dict):
        raise BadEntry(BAD_ENTRY, f"an annotation is {abridged(annotation)}")
    annotation = {key: value for key, value in annotation.items() if value is not None}  # Arrow's
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        segmentation = {key: value for key, value in segmentation.items() if value is not None}
        if isinstance(segmentation.get("counts"), bytes):
            segmentation["counts"] = segmentation["counts"].decode("ascii", "replace")
    box = annotation.get("bbox")
    return Region(
        segmentation_mask(segmentation, size),
        annotation.get("category_name"),
        None if box is None else corners(box),
        id=str(annotation.get("id", "")),
    )


def _extract(data: bytes, path: Path) -> None:
    if path.is_file():
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)
