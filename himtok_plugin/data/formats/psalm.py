"""Referring segmentation in PSALM's format: entries with `image_info`, `anns` and `instruction`, as JSON or Parquet.

Contract: an entry is one record with one query, whose targets are all its annotations; an entry without annotations, or
with an annotation without segments, has no target. Fields may be JSON text, and may have the names of RefCOCO on the
Hugging Face hub (`raw_image_info`, `raw_anns`, `raw_sentences`). Images inside a Parquet file are extracted to the
folder given as `images`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.annotation_values import annotated_size
from himtok_plugin.data.records import Query, Record, Region
from himtok_plugin.data.skip_log import BAD_ENTRY, MISSING_IMAGE, AnnotationError, SkipLog
from himtok_plugin.files.splits import find_split
from himtok_plugin.validation import abridged

from .coco_index import segmentation_mask, xywh_to_xyxy
from .entries import PARQUET, EntryFiles, find_entry_files, first_field
from .image_finder import ImageFinder
from .reader import Reader, Source
from .refer import IMAGE_FOLDERS


class PsalmReader(Reader):
    """`*<split>*.json`, `.jsonl` or `.parquet`, below the root or its `data/`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        names = [f"{folder}*{suffix}" for suffix in (".json", ".jsonl", PARQUET) for folder in ("", "data/")]
        files = find_entry_files(source.root, source.annotations, names, source.split, one_dataset=True)
        self.files = EntryFiles(files, fields=("image_info", "raw_image_info"))
        self.extract_to: Path | None = None
        if any(path.suffix == PARQUET for path in self.files.paths):
            self.items_per_call = 1  # each item is a row group
            if source.images is not None:
                below_root = not (source.images.is_absolute() or source.images.exists())
                self.extract_to = source.root / source.images if below_root else source.images
                self.extract_to.mkdir(parents=True, exist_ok=True)
        self.finder = ImageFinder(source, IMAGE_FOLDERS)

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        return self.files.list_items(log)

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        for name, entry in self.files.load(item):
            if entry.get("split") is not None and find_split(str(entry["split"]), (self.source.split,)) is None:
                continue
            try:
                yield self._record(name, entry, log)
            except AnnotationError as error:
                log.add(error.reason, f"{name}: {error.detail}")

    def _record(self, name: str, entry: dict[str, Any], log: SkipLog) -> Record:
        info = _parse_field(first_field(entry, "image_info", "raw_image_info"), dict)
        annotations = _parse_field(first_field(entry, "anns", "raw_anns"), (list, dict))
        annotations = [annotations] if isinstance(annotations, dict) else annotations
        texts = _instruction_texts(_parse_field(first_field(entry, "instruction", "raw_sentences", "sentences"), list))
        picture = entry.get("image")
        if self.extract_to is not None and isinstance(picture, dict) and picture.get("bytes"):
            _extract_image(picture["bytes"], self.extract_to / Path(str(info.get("file_name"))).name)
        try:
            own = annotated_size(info.get("height"), info.get("width"), log, name)
            path, size = self.finder.find(info.get("file_name"), own)
        except AnnotationError as error:
            if error.reason == MISSING_IMAGE and isinstance(picture, dict) and picture.get("bytes"):
                raise AnnotationError(
                    MISSING_IMAGE, f"{error.detail}: it is inside the Parquet file, give --images DIR to extract it"
                ) from error
            raise
        regions = tuple(
            _referent_region(annotation, size) for annotation in annotations if not _has_no_segments(annotation)
        )
        id = str(entry.get("ref_id", entry.get("new_img_id", name)))
        query = Query(texts, tuple(range(len(regions))), id=id)
        present = frozenset(region.category for region in regions if region.category)
        id = str(info.get("id", Path(path).stem))
        # An entry has only the referents, so their classes may have more objects in the image.
        return Record(path, size, id, regions, (query,), present=present or None, incomplete_classes=present)


def _parse_field(value: Any, kind: Any) -> Any:
    """A field of the expected type, decoded if it is JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(BAD_ENTRY, f"{abridged(value)} is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise AnnotationError(BAD_ENTRY, f"got {abridged(value)}")
    return value


def _instruction_texts(sentences: list[Any]) -> tuple[str, ...]:
    texts = []
    for sentence in sentences:
        if isinstance(sentence, dict):
            tokens = sentence.get("tokens")
            joined = " ".join(map(str, tokens)) if isinstance(tokens, list) else None
            sentence = sentence.get("sent") or sentence.get("raw") or joined
        if not isinstance(sentence, str) or not sentence.strip():
            raise AnnotationError(BAD_ENTRY, f"instruction holds {abridged(sentence)}: expected a text")
        texts.append(" ".join(sentence.split()))
    if not texts:
        raise AnnotationError(BAD_ENTRY, "instruction is empty")
    return tuple(texts)


def _has_no_segments(annotation: Any) -> bool:
    """Whether this is gRefCOCO's annotation of an expression without a target."""
    return isinstance(annotation, dict) and annotation.get("segmentation") == []


def _referent_region(annotation: Any, size: tuple[int, int]) -> Region:
    if not isinstance(annotation, dict):
        raise AnnotationError(BAD_ENTRY, f"an annotation is {abridged(annotation)}")
    annotation = {key: value for key, value in annotation.items() if value is not None}  # Arrow fills in nulls
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        segmentation = {key: value for key, value in segmentation.items() if value is not None}
        if isinstance(segmentation.get("counts"), bytes):
            segmentation["counts"] = segmentation["counts"].decode("ascii", "replace")
    box = annotation.get("bbox")
    return Region(
        segmentation_mask(segmentation, size),
        annotation.get("category_name"),
        None if box is None else xywh_to_xyxy(box),
        id=str(annotation.get("id", "")),
    )


def _extract_image(data: bytes, path: Path) -> None:
    if path.is_file():
        return
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)
