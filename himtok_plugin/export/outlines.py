"""Polygons that people can edit: outlines of masks with few points.

The exact outline of a mask (`masks.polygons.mask_polygons`) has a corner at nearly every pixel of a slanted border. It
is simplified as Douglas and Peucker do it (Cartographica 10(2), 1973): points within the tolerance of a line are left
out. A mask that would change too much, such as a small one, gets a smaller tolerance, and in the end its exact outline.

Contract: the polygons of a mask fill, by COCO's rule, a mask with an IoU of at least `LEAST_IOU` with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree

from himtok_plugin.masks.polygons import mask_polygons, polygons_to_mask

from .annotations import crop_mask

DEFAULT_TOLERANCE = 1.0  # pixels
LEAST_IOU = 0.97  # of a simplified outline with its mask
_SMALLER = (1.0, 0.5, 0.25)  # shares of the tolerance that are tried in turn


def check_tolerance(tolerance: float) -> float:
    """Return a tolerance in pixels; ValueError if it is not a finite number of at least 0."""
    if not (isinstance(tolerance, int | float) and 0 <= tolerance < float("inf")):
        raise ValueError(f"tolerance: got {tolerance!r}, expected a number of pixels, 0 or more")
    return float(tolerance)


def outline_mask(mask: np.ndarray, tolerance: float = DEFAULT_TOLERANCE) -> list[list[float]]:
    """Outline a mask by polygons without holes: parts with holes are cut into parts without.

    Args:
        mask: bool (h, w).
        tolerance: how far, in pixels, points that are left out may lie from the outline; 0 gives the exact outline.
    Returns:
        [x1, y1, x2, y2, …] in pixels for each part; an empty list for an empty mask.
    """
    part, (left, top, _, _) = crop_mask(mask)
    if not part.size:
        return []
    exact = mask_polygons(part)
    chosen: Sequence[Sequence[float]] = exact
    for share in _SMALLER if check_tolerance(tolerance) else ():
        simple = [simplify_polygon(polygon, tolerance * share) for polygon in exact]
        filled = polygons_to_mask(simple, part.shape)
        if np.count_nonzero(filled & part) >= LEAST_IOU * np.count_nonzero(filled | part):
            chosen = simple
            break
    return [[number + (top if i % 2 else left) for i, number in enumerate(polygon)] for polygon in chosen]


def simplify_polygon(polygon: Sequence[float], tolerance: float) -> list[float]:
    """Leave out points of a closed polygon that are within a tolerance of the line between points that stay.

    Args:
        polygon: [x1, y1, x2, y2, …].
        tolerance: in the unit of the points.
    Returns:
        At least three of the points, in their order; the polygon itself if fewer would stay.
    """
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    # The ring is split at two points that are far apart, and both halves are simplified.
    first = int(np.argmin(points.sum(axis=1)))
    points = np.roll(points, -first, axis=0)
    far = int(np.argmax(((points - points[0]) ** 2).sum(axis=1)))
    ring = np.concatenate([points, points[:1]])
    keep = np.zeros(len(ring), bool)
    keep[[0, far]] = True
    pending = [(0, far), (far, len(points))]
    while pending:
        begin, end = pending.pop()
        if end - begin < 2:
            continue
        inner = ring[begin + 1 : end] - ring[begin]
        along = ring[end] - ring[begin]
        length = np.hypot(*along)
        distances = np.abs(inner @ (-along[1], along[0])) / length if length else np.hypot(*inner.T)
        farthest = int(np.argmax(distances))
        if distances[farthest] > tolerance:
            middle = begin + 1 + farthest
            keep[middle] = True
            pending += [(begin, middle), (middle, end)]
    simple = points[keep[:-1]]
    return simple.ravel().tolist() if len(simple) > 2 else [float(number) for number in polygon]


def join_polygons(polygons: Sequence[Sequence[float]]) -> list[float]:
    """Join the parts of an object to one polygon, by bridges without width between points that are close.

    For formats with one polygon per object. COCO's rule, and every other one that counts borders, fills nothing on a
    bridge, because the outline goes there and back.

    Args:
        polygons: at least one, [x1, y1, x2, y2, …] each.
    Returns:
        One polygon.
    """
    parts = [np.asarray(polygon, np.float64).reshape(-1, 2) for polygon in polygons]
    joined = parts.pop(0)
    while parts:
        gaps, _ = KDTree(joined).query([part[0] for part in parts])
        part = parts.pop(int(np.argmin(gaps)))  # a close one, which keeps bridges short
        gaps, nearest = KDTree(part).query(joined)
        here = int(np.argmin(gaps))
        there = int(nearest[here])
        loop = np.concatenate([part[there:], part[: there + 1]])
        joined = np.concatenate([joined[: here + 1], loop, joined[here:]])
    return joined.ravel().tolist()
