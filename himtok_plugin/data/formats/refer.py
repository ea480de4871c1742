"""RefCOCO, RefCOCO+ and RefCOCOg as the REFER toolkit has them, and gRefCOCO, which adds none and several targets.

Contract: one record per image, one query per reference, in the order of the file. The references' pickle may hold plain
data only: nothing that it names is ever imported. The annotations' own `instances.json` gives the masks, and all
classes of an image. Does not know prompts and rows.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.byte_ranges import group_number, read_json
from himtok_plugin.data.records import (
    BAD_ENTRY,
    NOT_UTF8,
    REPEATED_ID,
    UNKNOWN_ID,
    BadEntry,
    Query,
    Record,
    Region,
    SkipLog,
    size_of,
)
from himtok_plugin.validation import abridged

from .coco_index import CocoIndex, ImageClasses, region_of
from .reader import ImageFinder, Reader, Source, find_path

IMAGE_FOLDERS = (
    "images/mscoco/images/train2014",
    "images/train2014",
    "train2014",
    "coco/train2014",
    "../images/mscoco/images/train2014",
    "../images/train2014",
    "../train2014",
    "../coco/train2014",
    "images",
    "",
)
NO_TARGET = -1  # gRefCOCO's id of the annotation that there is not


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dictionaries, strings and numbers; whatever a pickle wants to import is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"the pickle asks for {module}.{name}: expected plain lists, dictionaries, text and numbers")


def load_plain_pickle(path: Path) -> Any:
    """A pickle of plain data; text of Python 2 that is not UTF-8 comes with lone surrogates.

    Raises:
        ValueError: it asks for anything else, or is cut off.
    """
    with open(path, "rb") as file:
        try:
            return PlainUnpickler(file, encoding="utf-8", errors="surrogateescape").load()
        except Exception as error:  # damaged pickles raise nearly anything
            raise ValueError(f"{path}: cannot be unpickled ({error}): expected a REFER file") from error


class ReferReader(Reader):
    """RefCOCO, RefCOCO+, RefCOCOg."""

    folders = {"refcoco": ("refcoco",), "refcoco+": ("refcoco+",), "refcocog": ("refcocog",)}
    files = {
        "refcoco": ("refs(unc).p", "refs(google).p"),
        "refcoco+": ("refs(unc).p",),
        "refcocog": ("refs(umd).p", "refs(google).p"),
    }

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        below = [f"{folder}/{file}" for file in self.files[source.name] for folder in self.folders[source.name]]
        self.refs_file = self.annotation_file(*below, *self.files[source.name])
        folder = self.refs_file.parent
        self.instances_file = find_path(folder, None, ("instances.json",), "instances.json")
        self.finder = ImageFinder(source, IMAGE_FOLDERS)
        self.names: dict[Any, str] = {}

    def load_refs(self) -> Any:
        return load_plain_pickle(self.refs_file)

    def tasks(self, log: SkipLog) -> Sequence[Any]:
        refs = self.load_refs()
        if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
            raise ValueError(f"{self.refs_file}: holds {abridged(refs)}: expected a list of references")
        index = CocoIndex.read(self.instances_file, log)
        self.names = index.names()
        by_image: dict[Any, list[dict[str, Any]]] = {}
        seen, splits = set(), set()
        for ref in refs:
            splits.add(ref.get("split"))
            if ref.get("split") != self.source.split:
                continue
            name = f"ref {ref.get('ref_id')}"
            if ref.get("ref_id") in seen:
                log.skip(REPEATED_ID, name)
            elif not isinstance(ref.get("sentences"), list) or "image_id" not in ref or "ann_id" not in ref:
                log.skip(BAD_ENTRY, f"{name}: expected image_id, ann_id and sentences")
            else:
                seen.add(ref.get("ref_id"))
                by_image.setdefault(ref["image_id"], []).append(ref)
        if not by_image:
            raise ValueError(f"--split: got {self.source.split!r}, expected one of {sorted(map(str, splits))}")
        tasks = []
        for image_id, own in by_image.items():
            places = index.images.of(group_number(image_id))
            if places:
                number = group_number(image_id)
                tasks.append((places[0], index.annotations.of(number), index.left_out.get(number, []), own))
            else:
                log.skip_many(UNKNOWN_ID, [f"ref {ref.get('ref_id')}: image {image_id}" for ref in own])
        return tasks

    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        where, places, left_out, refs = task
        image = read_json(self.instances_file, where)
        try:
            path, size = self.finder.find(image.get("file_name"), size_of(image.get("height"), image.get("width")))
        except BadEntry as error:
            raise BadEntry(error.reason, f"image {image.get('id')}: {error.detail}") from error
        annotations = {}
        for place in places:
            annotation = read_json(self.instances_file, place)
            annotations[annotation.get("id")] = annotation
        regions: list[Region] = []
        known: dict[Any, int] = {}
        queries = []
        for ref in refs:
            name = f"image {image.get('id')}, ref {ref.get('ref_id')}"
            try:
                targets = [self._target(id, annotations, regions, known, size) for id in annotation_ids(ref["ann_id"])]
                expressions = tuple(_expressions(ref["sentences"], name, log))
                if expressions:
                    queries.append(Query(expressions, tuple(targets), id=str(ref.get("ref_id"))))
            except BadEntry as error:
                log.skip(error.reason, f"{name}: {error.detail}")
        classes = ImageClasses(self.names)
        for id, annotation in annotations.items():
            # What nobody refers to is no region.
            classes.add(annotation, regions[known[id]] if id in known else None)
        for place in left_out:
            classes.add_at(self.instances_file, place)
        yield Record(
            path,
            size,
            str(image.get("id")),
            tuple(regions),
            tuple(queries),
            present=frozenset(classes.present),
            absent=frozenset() if classes.unreadable else None,
            incomplete_classes=frozenset(classes.incomplete),
        )

    def _target(self, id: Any, annotations: dict, regions: list[Region], known: dict[Any, int], size) -> int:
        if id not in known:
            if id not in annotations:
                raise BadEntry(UNKNOWN_ID, f"annotation {abridged(id)}")
            regions.append(region_of(annotations[id], self.names, size))
            known[id] = len(regions) - 1
        return known[id]


class GrefReader(ReferReader):
    """gRefCOCO: `grefs(unc).json`."""

    folders = {"grefcoco": ("grefcoco",)}
    files = {"grefcoco": ("grefs(unc).json",)}

    def load_refs(self) -> Any:
        try:
            return json.loads(self.refs_file.read_text(encoding="utf-8", errors="surrogateescape"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.refs_file}: is not JSON ({error})") from error


def annotation_ids(value: Any) -> list[Any]:
    """The annotations that a reference means; RefCOCO names one, gRefCOCO a list, in which -1 is none."""
    ids = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(id for id in ids if id != NO_TARGET))


def _expressions(sentences: list[Any], name: str, log: SkipLog) -> Iterator[str]:
    """The sentences as they are evaluated ("sent": lower case, no punctuation), or else as they were written."""
    for sentence in sentences:
        text = sentence.get("sent") or sentence.get("raw") if isinstance(sentence, dict) else sentence
        if not isinstance(text, str) or not text.strip():
            log.skip(BAD_ENTRY, f"{name}: sentence {abridged(sentence)} has no text")
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            log.skip(NOT_UTF8, f"{name}: {error}")
            continue
        yield " ".join(text.split())
