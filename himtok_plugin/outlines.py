"""Outlines of a mask as polygons, for clients that draw or store masks as such.

Contract: `mask_polygons` is exact: filled by COCO's rule (`coco_masks.polygons_to_mask`), its polygons give the mask
back. Does not know where the mask comes from.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

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
