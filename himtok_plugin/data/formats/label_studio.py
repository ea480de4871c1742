"""The user's own Label Studio export: its JSON, or tasks with predictions to import.

Contract: one record per task. Of its annotations, the last one that is not cancelled counts; without any, the last
prediction. A region is a brush mask, a polygon, an ellipse, or a rectangle (a box without a mask). The text of its meta
information is its expression. The short form JSON-MIN is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from himtok_plugin.data.annotation_values import annotated_size, id_text
from himtok_plugin.data.byte_ranges import parse_json_file
from himtok_plugin.data.records import Query, Record, Region, class_names
from himtok_plugin.data.skip_log import (
    BAD_BOX,
    BAD_ENTRY,
    BAD_MASK,
    MISSING_IMAGE,
    AnnotationError,
    SkipLog,
)
from himtok_plugin.files.splits import split_names
from himtok_plugin.masks.brush_rle import decode_brush
from himtok_plugin.validation import abridged, finite_numbers

from .image_finder import ImageFinder
from .reader import ALL, Reader, Source

SHAPES = ("brush", "polygon", "ellipse", "rectangle")  # of regions, each with labels of its own or without
_ANNOTATIONS, _PREDICTIONS = "annotations", "predictions"
ROTATED = "image is turned in Label Studio, which is not read"


class LabelStudioReader(Reader):
    """`tasks.json`, or the only JSON file, and the images."""

    hint = "expected Label Studio's export as JSON, with tasks that have annotations or predictions"

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        if source.split == ALL:
            names = ["tasks.json", "result.json", *self.only_file(".json")]
        else:
            names = [form.format(own) for own in split_names(source.split) for form in ("{}.json", "{}/tasks.json")]
        self.path = self.annotation_file(*names)
        self.finder = ImageFinder(source, (str(self.path.parent.absolute()), "images", ""))

    def list_items(self, log: SkipLog) -> Sequence[tuple[int, dict[str, Any]]]:
        tasks = parse_json_file(self.path)
        if not isinstance(tasks, list) or not any(isinstance(task, dict) and "data" in task for task in tasks):
            raise ValueError(f"{self.path}: is {abridged(tasks)}: {self.hint}; JSON-MIN and other forms lack them")
        found = []
        for number, task in enumerate(tasks):
            if isinstance(task, dict) and isinstance(task.get("data"), dict):
                found.append((number, task))
            else:
                log.add(BAD_ENTRY, f"{self.path}: task {number} has no data")
        return found

    def read_records(self, item: tuple[int, dict[str, Any]], log: SkipLog) -> Iterator[Record]:
        number, task = item
        name = f"task {id_text(task.get('id', number))}"
        results = _choose_results(task)
        try:
            path, size = self.finder.find(_image_name(task["data"], results), self._annotated_size(results, log))
        except AnnotationError as error:
            raise AnnotationError(error.reason, f"{name}: {error.detail}") from error
        regions: list[Region] = []
        queries = []
        incomplete: set[str] = set()
        for result in results:
            kind = _shape_of(result)
            if kind is None:
                continue  # labels, texts, choices and relations of regions or of the image
            value = result["value"]
            label = _label_of(result, results)
            id = f"{name}/{result.get('id', len(regions))}"
            try:
                region = _make_region(kind, value, result, size, label, id, log)
            except AnnotationError as error:
                log.add(error.reason, f"{id}, {label!r}: {error.detail}")
                incomplete.update(filter(None, [label]))
                continue
            regions.append(region)
            if region.mask is None and label is not None:
                incomplete.add(label)
            if texts := _texts_of(result):
                queries.append(Query(texts, (len(regions) - 1,), id=id))
        named = frozenset(incomplete)
        yield Record(
            path,
            size,
            name,
            tuple(regions),
            tuple(queries),
            present=class_names(regions) | named,
            incomplete_classes=named,
        )

    def _annotated_size(self, results: Sequence[Mapping[str, Any]], log: SkipLog) -> tuple[int, int] | None:
        """(h, w) of the image as its first region states it; None without one."""
        known = (result for result in results if "original_height" in result)
        first = next(known, None)
        if first is None:
            return None
        return annotated_size(first["original_height"], first.get("original_width"), log, self.path.name)


def _choose_results(task: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results of the annotation that counts."""
    for key in (_ANNOTATIONS, _PREDICTIONS):
        entries = task.get(key)
        listed = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        if kept := [entry for entry in listed if not entry.get("was_cancelled")]:
            results = kept[-1].get("result")
            return [r for r in results if isinstance(r, dict)] if isinstance(results, list) else []
    return []


def _image_name(data: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str:
    """The image of a task: the field of its data that the regions' tag shows, else the only one that is a text."""
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value}
    tags = [result.get("to_name") for result in results]
    for key in (*tags, "image", "img", "url"):
        if key in texts:
            return texts[key]
    if len(texts) != 1:
        raise AnnotationError(MISSING_IMAGE, f"data has {abridged(list(data))}: expected one field with an image")
    return next(iter(texts.values()))


def _shape_of(result: Mapping[str, Any]) -> str | None:
    kind = str(result.get("type") or "").removesuffix("labels")
    return kind if kind in SHAPES and isinstance(result.get("value"), dict) else None


def _label_of(result: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> str | None:
    """The label in a region's own value, or in the labels that another result gives to the region."""
    for other in (result, *(other for other in results if other.get("id") == result.get("id"))):
        value = other.get("value")
        for key, names in value.items() if isinstance(value, dict) else ():
            if key.endswith("labels") and isinstance(names, list) and names:
                return " ".join(str(names[0]).split()) or None
    return None


def _texts_of(result: Mapping[str, Any]) -> tuple[str, ...]:
    meta = result.get("meta")
    texts = meta.get("text") if isinstance(meta, dict) else None
    listed = [texts] if isinstance(texts, str) else texts if isinstance(texts, list) else []
    return tuple(dict.fromkeys(text.strip() for text in listed if isinstance(text, str) and text.strip()))


def _make_region(
    kind: str,
    value: Mapping[str, Any],
    result: Mapping[str, Any],
    size: tuple[int, int],
    label: str | None,
    id: str,
    log: SkipLog,
) -> Region:
    h, w = size
    if result.get("image_rotation"):
        raise AnnotationError(BAD_MASK, f"{ROTATED}: {result['image_rotation']} degrees")
    if kind == "brush":
        annotated = annotated_size(result.get("original_height"), result.get("original_width"), log, id)
        if annotated not in (None, (h, w)):
            raise AnnotationError(BAD_MASK, f"its image has (h, w) = {annotated}: expected {(h, w)}, as the file")
        try:
            return Region(decode_brush(value.get("rle"), size), label, id=id)
        except ValueError as error:
            raise AnnotationError(BAD_MASK, str(error)) from error
    if kind == "polygon":
        try:
            points = np.array([finite_numbers(point) for point in value.get("points") or ()])
            polygon = (points.reshape(-1, 2) * (w / 100, h / 100)).ravel().tolist()
        except (TypeError, ValueError) as error:
            raise AnnotationError(BAD_MASK, f"points {abridged(value.get('points'))}: expected [x, y] each") from error
        return Region({"size": [h, w], "polygons": [polygon]}, label, id=id)
    keys = ("x", "y", "radiusX", "radiusY") if kind == "ellipse" else ("x", "y", "width", "height")
    try:
        x, y, dx, dy, angle = finite_numbers([*(value.get(key) for key in keys), value.get("rotation") or 0]).tolist()
    except ValueError as error:
        raise AnnotationError(BAD_BOX, f"{kind} {abridged(dict(value))}: expected numbers {', '.join(keys)}") from error
    x, y, dx, dy = x * w / 100, y * h / 100, dx * w / 100, dy * h / 100
    turn = np.deg2rad(angle)
    if kind == "rectangle":  # turned about its first corner
        corners = np.array([(0, 0), (dx, 0), (dx, dy), (0, dy)]) @ [
            [np.cos(turn), np.sin(turn)],
            [-np.sin(turn), np.cos(turn)],
        ]
        (x1, y1), (x2, y2) = (corners.min(axis=0) + (x, y)).tolist(), (corners.max(axis=0) + (x, y)).tolist()
        return Region(None, label, (x1, y1, x2, y2), id=id)
    rows, columns = np.ogrid[:h, :w]
    right, down = columns + 0.5 - x, rows + 0.5 - y
    along, across = right * np.cos(turn) + down * np.sin(turn), down * np.cos(turn) - right * np.sin(turn)
    return Region((along / max(dx, 1e-9)) ** 2 + (across / max(dy, 1e-9)) ** 2 <= 1, label, id=id)
