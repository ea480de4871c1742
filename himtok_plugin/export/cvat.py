"""CVAT for images 1.1: one XML for all images, and the labels of a CVAT task.

Contract: an object is a `<mask>`, exact with its holes, or polygons, several with one group. Score and expression are
attributes of its label.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from himtok_plugin.masks.run_lengths import Runs

from .annotations import MASKS, ExportImage, ExportObject, crop_mask, round_score
from .outlines import DEFAULT_TOLERANCE, outline_mask

SCORE, EXPRESSION = "score", "expression"  # attributes; our reader takes the second for an expression


def build_cvat(
    images: Iterable[ExportImage],
    labels: Sequence[str],
    shapes: str = MASKS,
    tolerance: float = DEFAULT_TOLERANCE,
) -> Iterator[str]:
    """Build `annotations.xml` part by part.

    Args:
        images: each once.
        labels: of all objects.
        shapes: `masks` or `polygons`.
        tolerance: of polygons, see `outlines.outline_mask`.
    """
    yield '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
    yield _indented(_build_meta(labels))
    for number, image in enumerate(images):
        h, w = image.size
        entry = _element("image", id=number, name=image.name, width=w, height=h)
        for group, each in enumerate(image.drawn, 1):
            drawn = [_mask_element(each)] if shapes == MASKS else _polygon_elements(each, group, tolerance)
            for shape in drawn:
                _add_attributes(shape, each)
            entry.extend(drawn)
        yield _indented(entry)
    yield "</annotations>\n"


def build_cvat_labels(labels: Sequence[str]) -> list[dict[str, Any]]:
    """Build the labels of a CVAT task, for the tab "Raw" of its label constructor."""
    attributes = [
        {"name": name, "mutable": False, "input_type": "text", "default_value": "", "values": [""]}
        for name in (SCORE, EXPRESSION)
    ]
    return [{"name": label, "type": "any", "attributes": attributes} for label in labels]


def _build_meta(labels: Sequence[str]) -> ElementTree.Element:
    meta = ElementTree.Element("meta")
    listed = ElementTree.SubElement(ElementTree.SubElement(meta, "task"), "labels")
    for label in labels:
        entry = ElementTree.SubElement(listed, "label")
        ElementTree.SubElement(entry, "name").text = _legal(label)
        attributes = ElementTree.SubElement(entry, "attributes")
        for name in (SCORE, EXPRESSION):
            attribute = ElementTree.SubElement(attributes, "attribute")
            for key, value in {"name": name, "mutable": "False", "input_type": "text", "default_value": ""}.items():
                ElementTree.SubElement(attribute, key).text = value
            ElementTree.SubElement(attribute, "values").text = ""
    return meta


def _mask_element(each: ExportObject) -> ElementTree.Element:
    """The run lengths, row by row, of the mask within its box, background first."""
    part, (x1, y1, x2, y2) = crop_mask(each.mask)
    bounds = Runs.from_mask(np.ascontiguousarray(part.T)).bounds
    runs = np.diff(np.concatenate([[0], bounds, [part.size]])).tolist()
    runs = runs if runs[-1] else runs[:-1]
    rle = ", ".join(map(str, runs))
    return _element("mask", **_common(each), rle=rle, left=x1, top=y1, width=x2 - x1, height=y2 - y1, z_order=0)


def _polygon_elements(each: ExportObject, group: int, tolerance: float) -> list[ElementTree.Element]:
    polygons = outline_mask(each.mask, tolerance)
    grouped = {"group_id": group} if len(polygons) > 1 else {}
    found = []
    for polygon in polygons:
        points = ";".join(f"{x:.2f},{y:.2f}" for x, y in np.reshape(polygon, (-1, 2)).tolist())
        found.append(_element("polygon", **_common(each), points=points, z_order=0, **grouped))
    return found


def _common(each: ExportObject) -> dict[str, Any]:
    return {"label": each.label, "source": "auto", "occluded": 0}


def _add_attributes(shape: ElementTree.Element, each: ExportObject) -> None:
    score = None if each.score is None else str(round_score(each.score))
    for name, value in ((SCORE, score), (EXPRESSION, each.expression)):
        if value is not None:
            ElementTree.SubElement(shape, "attribute", name=name).text = _legal(value)


def _element(tag: str, **attributes: Any) -> ElementTree.Element:
    return ElementTree.Element(tag, {name: _legal(str(value)) for name, value in attributes.items()})


def _legal(text: str) -> str:
    """A text without the control characters that XML cannot hold."""
    return "".join(character for character in text if character >= " " or character in "\t\n")


def _indented(element: ElementTree.Element) -> str:
    ElementTree.indent(element)
    text = ElementTree.tostring(element, encoding="unicode")
    return "".join(f"  {line}\n" for line in text.splitlines())
