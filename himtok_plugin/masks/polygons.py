"""Polygons to masks and masks to polygons, filled by COCO's rule.

Contract: `mask_polygons` is exact: `polygons_to_mask`, and therefore pycocotools, fills its polygons to the same mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order

from himtok_plugin.validation import abridged, finite_numbers

from .rle import MAX_PIXELS, check_size, rle_to_mask

MAX_OUTLINE = 1 << 24  # pixels along the sides of a polygon; pycocotools takes about 100 bytes for each
_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)


def mask_polygons(mask: np.ndarray) -> list[list[int]]:
    """Outline a mask; the inverse of `polygons_to_mask`.

    Polygons have no holes in COCO's format, so parts with holes are cut horizontally into parts without holes.

    Args:
        mask: bool (h, w).

    Returns:
        One [x1, y1, x2, y2, …] per part, corners only, clockwise along pixel borders, 0 <= x <= w and 0 <= y <= h, in
        the order of the parts' first pixels; an empty list for an empty mask.
    """
    return _trace_outlines(_label_parts_without_holes(mask)) if mask.any() else []


def _label_parts_without_holes(mask: np.ndarray) -> np.ndarray:
    """Label the connected parts of a mask after cutting those with holes.

    Foreground pixels are connected at their sides, background pixels also at their corners. A part is cut above the
    median of all rows that its holes cover, which opens every hole that the cut touches and creates no new one. The
    pieces are cut in the same way until no holes are left.

    Returns:
        int32 (h, w): 0 for background, parts are numbered from 1 in the order of their first pixels.
    """
    h, w = mask.shape
    parts, count = ndimage.label(mask)
    tops, bottoms, above = _find_holes(mask)
    # Rows of pixels alternate with rows that say whether the pixels above and below are connected.
    connected = np.empty((2 * h - 1, w), bool)
    connected[::2] = mask
    np.logical_and(mask[:-1], mask[1:], out=connected[1::2])
    while len(tops):
        owners = parts.ravel()[above]
        cuts = np.zeros(count + 1, np.int64)  # row below the cut, by part; 0 for no cut
        holed, cuts_of_holed = _median_rows(owners, tops, bottoms, h)
        cuts[holed] = cuts_of_holed
        for row in np.unique(cuts_of_holed):
            connected[2 * row - 1] &= cuts[parts[row]] != row
        closed = (cuts[owners] < tops) | (cuts[owners] > bottoms + 1)
        parts, count = ndimage.label(connected)
        parts = parts[::2]
        tops, bottoms, above = tops[closed], bottoms[closed], above[closed]
    return parts


def _find_holes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find holes, which are parts of the background that do not reach the border of the image.

    Returns:
        int64 (holes,) each: first row, last row, and the flat index of the pixel above the hole's first pixel. That
        pixel belongs to the part around the hole.
    """
    w = mask.shape[1]
    background, count = ndimage.label(np.pad(~mask, 1, constant_values=True), _EIGHT_NEIGHBOURS)
    labels = background[1:-1, 1:-1].ravel()
    pixels = np.flatnonzero(labels > 1)  # label 1 is what the padding belongs to
    holes = labels[pixels] - 2
    first, last = np.empty((2, count - 1), np.int64)
    first[holes[::-1]] = pixels[::-1]  # the last assignment to an element counts
    last[holes] = pixels
    return first // w, last // w, first - w


def _median_rows(owners: np.ndarray, tops: np.ndarray, bottoms: np.ndarray, h: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the parts with holes, and for each the median of the rows that its holes cover."""
    heights = bottoms - tops + 1
    rows = np.arange(heights.sum()) - np.repeat(np.cumsum(heights) - heights - tops, heights)
    covered = np.unique(np.repeat(owners.astype(np.int64) * h, heights) + rows)
    holed, begin, count = np.unique(covered // h, return_index=True, return_counts=True)
    return holed, covered[begin + count // 2] % h


def _trace_outlines(parts: np.ndarray) -> list[list[int]]:
    """Trace the outline of each part; `parts` holds the labels 1, 2, … of parts without holes, int (h, w).

    An outline is a cycle of pixel sides, which are numbered 4 * pixel + side, with sides 0 to 3 for top, right, bottom
    and left, each traversed clockwise. All successors are computed at once.
    """
    padded = np.pad(parts, 1)
    w = padded.shape[1]
    labels = padded.ravel()
    beyond = np.array([-w, 1, w, -1])  # offset of the pixel beyond each side
    foreground = np.flatnonzero(labels)
    is_border = labels[foreground[:, None] + beyond] != labels[foreground, None]
    pixel, side = foreground[np.nonzero(is_border)[0]], np.nonzero(is_border)[1]
    part = labels[pixel]

    # At the end of a side the outline turns right around the same pixel, goes straight on, or turns left.
    ahead = pixel + beyond[(side + 1) % 4]
    ahead_left = ahead + beyond[side]
    successor = np.where(
        labels[ahead] != part,
        4 * pixel + (side + 1) % 4,
        np.where(labels[ahead_left] != part, 4 * ahead + side, 4 * ahead_left + (side - 1) % 4),
    )
    index = np.empty(4 * labels.size, np.int32)
    index[4 * pixel + side] = np.arange(len(pixel))
    successor = index[successor]

    # The cycles are joined into one chain, each continuing in the next, which SciPy's search follows in compiled code.
    start = np.unique(part, return_index=True)[1]
    is_start = np.zeros(len(pixel), bool)
    is_start[start] = True
    last = np.flatnonzero(is_start[successor])
    successor[last] = np.roll(start, -1)[part[last] - 1]
    chain = csr_array((np.ones(len(pixel)), successor, np.arange(len(pixel) + 1)))
    order = breadth_first_order(chain, start[0], return_predecessors=False)

    is_corner = is_start[order] | (side[order] != np.roll(side[order], 1))
    corners = order[is_corner]
    y, x = np.divmod(pixel[corners], w)
    x += np.isin(side[corners], (1, 2)) - 1  # -1 for the padding
    y += np.isin(side[corners], (2, 3)) - 1
    numbers = np.stack([x, y], axis=1).ravel().tolist()
    ends = 2 * np.cumsum(np.bincount(part[corners]))
    return [numbers[begin:end] for begin, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]


def polygons_to_mask(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> np.ndarray:
    """Union of polygons as bool (h, w); the inverse of `mask_polygons`. See `polygons_to_rle`."""
    rle = polygons_to_rle(polygons, size)
    return rle_to_mask(rle["counts"], rle["size"])


def polygons_to_rle(polygons: Sequence[Sequence[float]], size: Sequence[int]) -> dict[str, Any]:
    """Union of polygons as compressed COCO RLE, filled and clipped to the image as pycocotools does it.

    Args:
        polygons: [[x1, y1, x2, y2, …], …] in pixels, see `check_polygon`; an empty list gives an empty mask.
        size: [h, w].
    Returns:
        {"size": [h, w], "counts": str}.
    Raises:
        ValueError: something else than a list of polygons, or a bad polygon, by its index.
    """
    h, w = check_size(size)
    if not is_list(polygons):
        raise ValueError(f"polygons is {abridged(polygons)}: expected a list of lists [x1, y1, x2, y2, ...]")
    checked = [check_polygon(polygon, f"polygons[{i}]", (h, w)).tolist() for i, polygon in enumerate(polygons)]
    runs = coco.frPyObjects(checked, h, w) if checked else [coco.frPyObjects({"size": [h, w], "counts": [h * w]}, h, w)]
    merged = coco.merge(runs) if len(runs) > 1 else runs[0]
    return {"size": [h, w], "counts": merged["counts"].decode("ascii")}


def check_polygon(polygon: Any, name: str, size: tuple[int, int]) -> np.ndarray:
    """Check one polygon by the rule that holds for all annotations and rows.

    A part outside the image is cut off, as annotation tools expect it. It may reach at most the image's width or height
    beyond a border: pycocotools samples the sides in steps of 1/5 pixel with 32-bit numbers, so that far points cost
    memory, or overflow.

    Args:
        polygon: x1, y1, x2, y2, … in pixels.
        name: how errors call it.
        size: (h, w) of the image.
    Returns:
        float64 (2 * points,).
    Raises:
        ValueError: not finite numbers, fewer than three points, or outside or far outside the image.
    """
    h, w = size
    try:
        flat = finite_numbers(polygon)
    except ValueError as error:
        raise ValueError(f"{name} is {error} [x1, y1, x2, y2, ...]") from error
    if flat.size % 2 or flat.size < 6:
        raise ValueError(
            f"{name} is {abridged(polygon)}, {flat.size} numbers: expected x, y of at least three points, "
            "an even number of coordinates"
        )
    x, y = flat[::2], flat[1::2]
    x1, x2, y1, y2 = float(x.min()), float(x.max()), float(y.min()), float(y.max())
    reach = f"{name} reaches from ({x1:g}, {y1:g}) to ({x2:g}, {y2:g})"
    expected = f"expected 0 <= x <= {w} and 0 <= y <= {h}"
    if x1 < -w or y1 < -h or x2 > 2 * w or y2 > 2 * h or max(x2, y2) > MAX_PIXELS:
        raise ValueError(f"{reach}, far outside the image: {expected}")
    if x2 < 0 or y2 < 0 or x1 > w or y1 > h:
        raise ValueError(f"{reach}, outside the image: {expected}")
    length = len(x) * max(x2 - x1, y2 - y1)  # at most, and quick to compute
    if length > MAX_OUTLINE:
        length = float(np.maximum(np.abs(x - np.roll(x, 1)), np.abs(y - np.roll(y, 1))).sum())
    if length > MAX_OUTLINE:
        raise ValueError(f"{name} has an outline of {length:g} pixels: expected at most {MAX_OUTLINE}")
    return flat


def is_list(value: Any) -> bool:
    """Whether a value is a sequence or an array, and no text."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes | bytearray)
