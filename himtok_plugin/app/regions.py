"""Regions that users mark in an image: a box, a click or a brush stroke becomes the mask of a `<mask>` in the question.

Contract: positions come from the browser as fractions of the image's width and height, so that they do not depend on
the size at which it is drawn. What is malformed is a `ValueError`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from himtok_plugin.validation import abridged

KINDS = ("box", "click", "stroke")
CLICK_RADIUS = 0.03  # of the longer side: a disc that the mask tokenizer can still draw, and that fits in most objects
_MAX_POINTS = 20_000  # of a stroke
_MAX_RADIUS = 0.5


def make_region_mask(
    region: Mapping[str, Any], size: tuple[int, int], answers: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Make the mask of a region.

    Args:
        region: `kind` "box" with x1, y1, x2, y2 (two opposite corners); "click" with x, y and perhaps `mask`, the id
            of the mask that was clicked at; "stroke" with `points` [[x, y], …] and `radius`, a fraction of the longer
            side.
        size: (h, w) of the image.
        answers: masks of earlier answers by their ids, bool (h, w).
    Returns:
        bool (h, w) with at least one pixel: the box; the clicked mask, or without one a disc around the click, whose
        radius is `CLICK_RADIUS` of the longer side; what the brush has covered.
    Raises:
        ValueError: a region of another form, or a mask that is not there.
    """
    kind = region.get("kind") if isinstance(region, Mapping) else None
    if kind not in KINDS:
        raise ValueError(f"region: got {abridged(region)}, expected a box, a click or a stroke")
    if kind == "box":
        return _fill_box([_read_fraction(region, key) for key in ("x1", "y1", "x2", "y2")], size)
    if kind == "stroke":
        return _draw_stroke(_read_points(region), _read_radius(region), size)
    clicked = region.get("mask")
    if clicked is None:
        point = _read_fraction(region, "x"), _read_fraction(region, "y")
        return _draw_stroke([point], CLICK_RADIUS, size)
    if answers is None or clicked not in answers:
        raise ValueError(f"region: got a click on the mask {abridged(clicked)}, expected one of this image's masks")
    mask = answers[clicked]
    if not mask.any():
        raise ValueError("region: got a click on an empty mask, expected one that covers something")
    return mask


def _fill_box(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    h, w = size
    (x1, x2), (y1, y2) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    left, top = min(int(x1 * w), w - 1), min(int(y1 * h), h - 1)
    mask = np.zeros(size, dtype=bool)
    mask[top : max(math.ceil(y2 * h), top + 1), left : max(math.ceil(x2 * w), left + 1)] = True
    return mask


def _draw_stroke(points: Sequence[tuple[float, float]], radius: float, size: tuple[int, int]) -> np.ndarray:
    h, w = size
    picture = Image.new("1", (w, h))
    draw = ImageDraw.Draw(picture)
    r = max(radius * max(h, w), 0.5)
    centres = [(min(x * w, w - 1), min(y * h, h - 1)) for x, y in points]
    for x, y in centres:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=1)
        draw.point((int(x), int(y)), fill=1)
    if len(centres) > 1:
        draw.line(centres, fill=1, width=max(round(2 * r), 1))
    return np.array(picture, dtype=bool)


def _read_points(region: Mapping[str, Any]) -> list[tuple[float, float]]:
    points = region.get("points")
    if not isinstance(points, list) or not 0 < len(points) <= _MAX_POINTS:
        raise ValueError(f"region: got the points {abridged(points)}, expected 1 to {_MAX_POINTS} points [x, y]")
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            raise ValueError(f"region: got the point {abridged(point)}, expected [x, y]")
    return [(_check_fraction(x, "x"), _check_fraction(y, "y")) for x, y in points]


def _read_radius(region: Mapping[str, Any]) -> float:
    radius = region.get("radius")
    if isinstance(radius, bool) or not isinstance(radius, int | float) or not 0 < radius <= _MAX_RADIUS:
        raise ValueError(f"region: got the radius {abridged(radius)}, expected a number above 0 up to {_MAX_RADIUS}")
    return float(radius)


def _read_fraction(region: Mapping[str, Any], key: str) -> float:
    return _check_fraction(region.get(key), key)


def _check_fraction(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"region: got {key} {abridged(value)}, expected a number from 0 to 1")
    return min(max(float(value), 0.0), 1.0)  # a pointer can leave the image while it draws
