"""Outlines of a mask as polygons, for clients that draw or store masks as such.

Contract: `mask_polygons` is exact: filled by COCO's rule (`coco_masks.polygons_to_mask`), its polygons give the mask
back. Does not know where the mask comes from.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
import reprlib
from collections.abc import Sequence
from typing import Any
import numpy as np
from pycocotools import mask as coco
from .rle import check_size, rle_to_mask
from himtok_plugin.validation import abridged

_TOUCHING = np.ones((3, 3), bool)  # background pixels belong together across corners, foreground ones do not
_RIGHT, _DOWN, _LEFT, _UP = range(4)


def mask_polygons(mask: np.ndarray) -> list[list[int]]:
    """Outline a mask.

    COCO's polygons have no holes: a part of the mask that has one is cut through it, row-wise, into parts without.

    Args:
        mask: bool (h, w).

    Returns:
        One [x1, y1, x2, y2, …] per part, clockwise along pixel borders, 0 <= x <= w and 0 <= y <= h; none for an empty
        mask.
    """
    polygons = []
    pending = _parts(mask, 0, 0)
    while pending:
        part, top, left = pending.pop()
        row = _row_of_a_hole(part)
        if row is None:
            polygons.append(_outline(part, top, left))
        else:
            pending += _parts(part[:row], top, left) + _parts(part[row:], top + row, left)
    return polygons


def _parts(mask: np.ndarray, top: int, left: int) -> list[tuple[np.ndarray, int, int]]:
    """Connected parts, each as small as it can be, and where they lie."""
    labels, _ = ndimage.label(mask)
    return [
        (labels[rows, columns] == number, top + rows.start, left + columns.start)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1)
    ]


def _row_of_a_hole(part: np.ndarray) -> int | None:
    """The middle one of the rows with holes, never the first row: cutting above it opens every hole that it crosses."""
    background, count = ndimage.label(~np.pad(part, 1), _TOUCHING)
    if count == 1:
        return None
    rows = np.flatnonzero((background > 1).any(axis=1)) - 1  # the padding, scanned first, has label 1
    return int(rows[len(rows) // 2])


def _outline(part: np.ndarray, top: int, left: int) -> list[int]:
    """Walk once around a connected part without holes, the foreground on the right hand; corners only."""
    h, w = part.shape
    around = np.pad(part, 1)
    edges = np.zeros((h + 1, w + 1), np.uint8)  # bit d: a border goes from this pixel corner in direction d
    edges[:-1, :-1] |= (part & ~around[:-2, 1:-1]).astype(np.uint8) << _RIGHT
    edges[:-1, 1:] |= (part & ~around[1:-1, 2:]).astype(np.uint8) << _DOWN
    edges[1:, 1:] |= (part & ~around[2:, 1:-1]).astype(np.uint8) << _LEFT
    edges[1:, :-1] |= (part & ~around[1:-1, :-2]).astype(np.uint8) << _UP
    steps = (1, w + 1, -1, -(w + 1))
    leaving = edges.tobytes()  # plain integers: the walk goes corner by corner
    start = int(np.flatnonzero(part[0])[0])
    corners, position, direction = [start], start, _RIGHT
    while True:
        position += steps[direction]
        right = (direction + 1) % 4
        # Where two pixels touch at this corner only, the turn to the right stays with the own one.
        if leaving[position] >> right & 1:
            direction = right
        elif leaving[position] >> direction & 1:
            continue
        else:
            direction = (direction - 1) % 4
        if position == start and direction == _RIGHT:
            break
        corners.append(position)
    y, x = np.divmod(np.array(corners), w + 1)
    return np.stack([x + left, y + top], axis=1).ravel().tolist()
POLYGON_TOLERANCE = 0.5  # pixels; conventions differ in whether coordinates name pixel corners or centres


def polygons_to_mask(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> np.ndarray:
    """Union of polygons, filled by COCO's rule; no polygon gives an empty mask.

    Args:
        polygons: [[x1, y1, x2, y2, …], …] in pixels, at least three points each, with 0 <= x <= w and 0 <= y <= h
            (half a pixel beyond is taken as the border).
        size: [h, w].
    Returns:
        bool (h, w).
    """
    h, w = check_size(size)
    if not isinstance(polygons, Sequence | np.ndarray) or isinstance(polygons, str | bytes):
        raise ValueError(f"polygons is {abridged(polygons)}: expected a list of lists [x1, y1, x2, y2, ...]")
    mask = np.zeros((h, w), dtype=bool)
    for i, polygon in enumerate(polygons):
        points = _check_polygon(polygon, f"polygons[{i}]", h, w)
        mask |= rle_to_mask(coco.frPyObjects([points.ravel().tolist()], h, w)[0]["counts"], size)
    return mask


def _check_polygon(polygon: Any, name: str, h: int, w: int) -> np.ndarray:
    """One polygon as float64 (points, 2) within the image."""
    try:
        flat = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {abridged(polygon)}: expected numbers [x1, y1, x2, y2, ...]") from error
    if flat.ndim != 1 or flat.size % 2 or flat.size < 6:
        raise ValueError(
            f"{name} is {abridged(polygon)}, of shape {flat.shape}: expected x, y of at least three points, "
            "an even number of coordinates"
        )
    points = flat.reshape(-1, 2)
    border = np.array([w, h], dtype=np.float64)
    inside = (points >= -POLYGON_TOLERANCE) & (points <= border + POLYGON_TOLERANCE)  # false for NaN as well
    if not inside.all():
        x, y = points[np.flatnonzero(~inside.all(axis=1))[0]].tolist()
        raise ValueError(f"{name} has the point ({x:g}, {y:g}): expected 0 <= x <= {w} and 0 <= y <= {h}")
    return np.clip(points, 0, border)
