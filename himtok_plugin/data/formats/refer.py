"""RefCOCO, RefCOCO+ and RefCOCOg in the files of the REFER toolkit, and gRefCOCO, with none or several targets.

Contract: one record per image, one query per reference, in the order of the file. The pickle of the references may
contain plain data only: loading it never imports anything. `instances.json` beside it has the masks, and all classes of
an image.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.annotation_values import annotated_size, id_text, normal_id
from himtok_plugin.data.byte_ranges import id_to_int, read_json_at
from himtok_plugin.data.records import Query, Record, Region
from himtok_plugin.data.skip_log import BAD_ENTRY, NOT_UTF8, REPEATED_ID, UNKNOWN_ID, AnnotationError, SkipLog
from himtok_plugin.files.splits import find_split
from himtok_plugin.files.text import decode_text, find_encoding
from himtok_plugin.validation import abridged

from .coco_index import CocoIndex, ImageClasses, annotation_to_region
from .image_finder import ImageFinder
from .reader import Reader, Source, find_path

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
NO_TARGET = -1  # gRefCOCO's annotation id for "no target"


class PlainUnpickler(pickle.Unpickler):
    """Loads lists, dictionaries, strings and numbers; everything that a pickle would import is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise ValueError(f"the pickle asks for {module}.{name}: expected plain lists, dictionaries, text and numbers")


def load_plain_pickle(path: Path) -> Any:
    """Load a pickle of plain data; bytes of Python 2 strings that are not UTF-8 become lone surrogates.

    Raises:
        ValueError: it contains anything else, or is truncated.
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
        self.crowds_are_objects = False

    def load_refs(self) -> Any:
        return load_plain_pickle(self.refs_file)

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        refs = self.load_refs()
        if not isinstance(refs, list) or not any(isinstance(ref, dict) for ref in refs):
            raise ValueError(f"{self.refs_file}: holds {abridged(refs)}: expected a list of references")
        index = CocoIndex.read(self.instances_file, log)
        self.names = index.names()
        self.crowds_are_objects = index.crowds.are_objects(self.source.crowds, self.instances_file, log)
        by_image: dict[Any, list[dict[str, Any]]] = {}
        seen, splits = set(), set()
        for ref in refs:
            if not isinstance(ref, dict):
                log.add(BAD_ENTRY, f"{self.refs_file}: {abridged(ref)}: expected a reference")
                continue
            splits.add(ref.get("split"))
            if find_split(str(ref.get("split")), (self.source.split,)) is None:
                continue
            name, id = f"ref {ref.get('ref_id')}", normal_id(ref.get("ref_id"))
            if id in seen:
                log.add(REPEATED_ID, name)
            elif (
                not isinstance(ref.get("sentences"), list)
                or normal_id(ref.get("image_id")) is None
                or "ann_id" not in ref
            ):
                log.add(BAD_ENTRY, f"{name}: expected image_id, ann_id and sentences")
            else:
                seen.add(id)
                by_image.setdefault(normal_id(ref["image_id"]), []).append(ref)
        if not by_image:
            raise ValueError(f"--split: got {self.source.split!r}, expected one of {sorted(map(str, splits))}")
        items = []
        for image_id, own in by_image.items():
            number = id_to_int(image_id)
            if places := index.images.in_group(number):
                items.append((places[0], index.annotations.in_group(number), own))
            else:
                log.add_all(UNKNOWN_ID, [f"ref {ref.get('ref_id')}: image {image_id}" for ref in own])
        return items

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        where, places, refs = item
        image = read_json_at(self.instances_file, where)
        try:
            own = annotated_size(image.get("height"), image.get("width"), log, self.instances_file.name)
            path, size = self.finder.find(image.get("file_name"), own)
        except AnnotationError as error:
            raise AnnotationError(error.reason, f"image {image.get('id')}: {error.detail}") from error
        annotations: dict[Any, dict[str, Any]] = {}
        classes = ImageClasses(self.names)
        for place in places:
            annotation = read_json_at(self.instances_file, place)
            if annotations.setdefault(normal_id(annotation.get("id")), annotation) is not annotation:
                classes.add(annotation, None)  # no expression can refer to it
        regions: list[Region] = []
        known: dict[Any, int] = {}
        queries = []
        for ref in refs:
            name = f"{self.refs_file.name}, image {image.get('id')}, ref {ref.get('ref_id')}"
            try:
                targets = [self._target(id, annotations, regions, known, size) for id in annotation_ids(ref["ann_id"])]
                expressions = tuple(_ref_expressions(ref["sentences"], name, log))
                if expressions:
                    queries.append(Query(expressions, tuple(targets), id=str(ref.get("ref_id"))))
            except AnnotationError as error:
                log.add(error.reason, f"{name}: {error.detail}")
        for id, annotation in annotations.items():
            # An annotation that no expression refers to has no region.
            classes.add(annotation, regions[known[id]] if id in known else None)
        yield Record(
            path,
            size,
            id_text(image.get("id")),
            tuple(regions),
            tuple(queries),
            present=frozenset(classes.present),
            absent=frozenset() if classes.unreadable else None,
            incomplete_classes=frozenset(classes.incomplete),
        )

    def _target(
        self,
        id: Any,
        annotations: dict[Any, dict[str, Any]],
        regions: list[Region],
        known: dict[Any, int],
        size: tuple[int, int],
    ) -> int:
        """The index of an annotation's region, which is created when it is first referred to."""
        if id not in known:
            if id not in annotations:
                raise AnnotationError(UNKNOWN_ID, f"annotation {abridged(id)}")
            regions.append(annotation_to_region(annotations[id], self.names, size, self.crowds_are_objects))
            known[id] = len(regions) - 1
        return known[id]


class GrefReader(ReferReader):
    """gRefCOCO: `grefs(unc).json`."""

    folders = {"grefcoco": ("grefcoco",)}
    files = {"grefcoco": ("grefs(unc).json",)}

    def load_refs(self) -> Any:
        try:
            data = self.refs_file.read_bytes()
            if not find_encoding(data[:4]).startswith("UTF-8"):
                return json.loads(decode_text(data, str(self.refs_file)))
            return json.loads(data.decode("utf-8-sig", "surrogateescape"))  # a bad sentence is skipped alone
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self.refs_file}: is not JSON ({error})") from error


def annotation_ids(value: Any) -> list[Any]:
    """The annotations that a reference refers to: one id in RefCOCO, a list in gRefCOCO, where -1 is "no target"."""
    ids = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(id for id in map(normal_id, ids) if id != NO_TARGET))


def _ref_expressions(sentences: list[Any], name: str, log: SkipLog) -> Iterator[str]:
    """The sentences in the form that is evaluated ("sent": lower case, no punctuation), or else the raw ones."""
    for sentence in sentences:
        text = sentence.get("sent") or sentence.get("raw") if isinstance(sentence, dict) else sentence
        if not isinstance(text, str) or not text.strip():
            log.add(BAD_ENTRY, f"{name}: sentence {abridged(sentence)} has no text")
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            log.add(NOT_UTF8, f"{name}: {error}: save the file as UTF-8")
            continue
        yield " ".join(text.split())
