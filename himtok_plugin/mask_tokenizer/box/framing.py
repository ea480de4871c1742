"""Frames of objects: bounding boxes of masks, and the resampling between the square and a canvas that covers a box.

Contract: `find_boxes` finds the box of each mask. `crop_to_canvas` draws what is in a box on a canvas, so that objects
of all sizes and places look alike, and `paste_canvas` draws it back. Both are differentiable, also by the box.

Shapes: b batch, s side of the square, c side of the canvas. Boxes are (b, 4) float32: left, top, right and bottom in
multiples of the square's side, from 0 to 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

CANVAS_MARGIN = 0.06  # of the box's width or height, on each side: rounded boxes can be smaller than the object
EDGE_SHARE = 0.25  # of a row's or column's maximum over the image, from which it belongs to the box
EMPTY_BELOW = 1e-3  # greatest value of a mask without an object
SMALLEST_SIDE = 1e-4  # of a box, in multiples of the square's side; avoids a division by zero


def find_boxes(squares: Tensor) -> Tensor:
    """Bounding boxes of masks; the values of blurred edges place them between pixels.

    Args:
        squares: (b, s, s) float in [0, 1].

    Returns:
        (b, 4) float32; a mask without an object gets a box without extent in the middle.
    """
    values = squares.float()
    horizontal = _find_extent(values.amax(dim=1))
    vertical = _find_extent(values.amax(dim=2))
    boxes = torch.stack([horizontal[0], vertical[0], horizontal[1], vertical[1]], dim=1)
    is_empty = values.amax(dim=(1, 2)) < EMPTY_BELOW
    return torch.where(is_empty[:, None], 0.5, boxes)


def _find_extent(profile: Tensor) -> tuple[Tensor, Tensor]:
    """(b, s) maxima of rows or columns -> first and last position, (b,) each, in multiples of s."""
    side = profile.shape[1]
    inside = profile >= EDGE_SHARE * profile.amax(dim=1, keepdim=True).clamp(min=EMPTY_BELOW)
    index = torch.arange(side, device=profile.device)
    first = torch.where(inside, index, side - 1).amin(dim=1)
    last = torch.where(inside, index, 0).amax(dim=1)
    # A pixel that is half covered is half inside.
    first_share = profile.gather(1, first[:, None])[:, 0].clamp(0, 1)
    last_share = profile.gather(1, last[:, None])[:, 0].clamp(0, 1)
    is_one_pixel = first == last
    start = torch.where(is_one_pixel, first + 0.5 - first_share / 2, first + 1 - first_share)
    stop = torch.where(is_one_pixel, first + 0.5 + first_share / 2, last + last_share)
    return start / side, stop / side


def crop_to_canvas(squares: Tensor, boxes: Tensor, canvas_size: int) -> Tensor:
    """Draw what is in the boxes, with a margin, on canvases.

    Args:
        squares: (b, s, s) float in [0, 1].
        boxes: (b, 4) float32.
        canvas_size: c.

    Returns:
        (b, c, c) float32 in [0, 1]; what lies outside the square is 0.
    """
    with torch.autocast(squares.device.type, enabled=False):
        left, top, right, bottom = _add_margin(boxes.float()).unbind(dim=1)
        zero, one = torch.zeros_like(left), torch.ones_like(left)
        across = _resampling_matrix(canvas_size, left, right, squares.shape[2], zero, one)
        down = _resampling_matrix(canvas_size, top, bottom, squares.shape[1], zero, one)
        return (down @ squares.float() @ across.transpose(1, 2)).clamp(0, 1)


def paste_canvas(canvases: Tensor, boxes: Tensor, side: int) -> Tensor:
    """Draw canvases into the boxes of squares; the reverse of `crop_to_canvas`.

    Args:
        canvases: (b, c, c) float.
        boxes: (b, 4) float32.
        side: s.

    Returns:
        (b, s, s) float32; zero outside the boxes and their margin.
    """
    with torch.autocast(canvases.device.type, enabled=False):
        left, top, right, bottom = _add_margin(boxes.float()).unbind(dim=1)
        zero, one = torch.zeros_like(left), torch.ones_like(left)
        across = _resampling_matrix(side, zero, one, canvases.shape[2], left, right)
        down = _resampling_matrix(side, zero, one, canvases.shape[1], top, bottom)
        return down @ canvases.float() @ across.transpose(1, 2)


def _add_margin(boxes: Tensor) -> Tensor:
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).clamp(min=SMALLEST_SIDE) * (0.5 + CANVAS_MARGIN)
    return torch.cat([centre - half, centre + half], dim=1)


def _resampling_matrix(
    count: int, start: Tensor, stop: Tensor, source_count: int, source_start: Tensor, source_stop: Tensor
) -> Tensor:
    """Matrix that resamples a column of pixels linearly; if it gets smaller, wide triangles prevent aliasing.

    Args:
        count: number of pixels, which cover `start` to `stop`, (b,) each.
        source_count: number of pixels of the source, which cover `source_start` to `source_stop`, (b,) each.

    Returns:
        (b, count, source_count) float32.
    """
    pixel = (stop - start) / count
    source_pixel = (source_stop - source_start) / source_count
    index = torch.arange(count, device=start.device) + 0.5
    source_index = torch.arange(source_count, device=start.device) + 0.5
    positions = (start[:, None] + pixel[:, None] * index - source_start[:, None]) / source_pixel[:, None]
    reach = (pixel / source_pixel).clamp(min=1)[:, None, None]  # of the triangle, in pixels of the source
    return (1 - (positions[:, :, None] - source_index).abs() / reach).clamp(min=0) / reach
