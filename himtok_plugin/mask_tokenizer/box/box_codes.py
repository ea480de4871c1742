"""Bounding boxes as codes, coarse to fine: each code halves the range of every coordinate a few times.

Contract: `box_code_vectors` has, for every position and code, what the code adds to the centre and size of the box.
The sum over the first n codes is the middle of what these n codes leave open. `boxes_to_coordinates` and
`coordinates_to_boxes` convert between boxes and the coordinates in which codes add up.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

COORDINATES = 4  # centre x, centre y, width, height
# Sizes below 1/128 of the square's side are spaced evenly, larger ones by equal factors, because a pixel more or less
# matters less for a large object.
SIZE_RANGE = math.log(128)
LEVEL_WIDTH = 0.7  # standard deviation of the features of levels, in levels: neighbours are alike


def count_bits(codebook_size: int) -> list[int]:
    """Bits of a code for centre x, centre y, width and height. Places need more than sizes.

    Raises:
        ValueError: the size of the codebook is not a power of two.
    """
    bits = codebook_size.bit_length() - 1
    if codebook_size != 1 << bits:
        raise ValueError(f"codebook_size={codebook_size}: expected a power of two if code_scheme is 'box'")
    return [bits // COORDINATES + (coordinate < bits % COORDINATES) for coordinate in range(COORDINATES)]


@cache
@torch.inference_mode(False)  # tensors made in inference mode cannot be part of a graph later
def box_code_vectors(num_codes: int, codebook_size: int, device: torch.device) -> Tensor:
    """What each code adds to the coordinates of a box. The result is shared and must not be changed.

    Args:
        num_codes: positions that describe the box.
        codebook_size: v.
        device: of the result.

    Returns:
        (num_codes, v, 4) float32.

    Raises:
        ValueError: see `count_bits`.
    """
    counts = torch.tensor([1 << count for count in count_bits(codebook_size)], dtype=torch.float64)
    within = (_split_codes(codebook_size) + 0.5) / counts - 0.5  # of the range that is left open before the code
    return torch.stack([within / counts**position for position in range(num_codes)]).float().to(device)


def describe_box_codes(codebook_size: int) -> Tensor:
    """Features of box codes, the same at all positions: for each level of each coordinate, how near the code is to it.

    A linear function of them can prefer any level, also one in the middle.

    Returns:
        (v, number of levels of all coordinates) float32 in (0, 1].

    Raises:
        ValueError: see `count_bits`.
    """
    levels = _split_codes(codebook_size)
    features = []
    for coordinate, count in enumerate(count_bits(codebook_size)):
        distances = levels[:, coordinate, None] - torch.arange(1 << count)
        features.append((-distances.square() / (2 * LEVEL_WIDTH**2)).exp())
    return torch.cat(features, dim=1)


def _split_codes(codebook_size: int) -> Tensor:
    """(v, 4) int64, the level of each coordinate within the range that is left open before the code."""
    codes, levels = torch.arange(codebook_size), []
    for count in reversed(count_bits(codebook_size)):  # the last coordinate has the lowest bits
        levels.append(codes & ((1 << count) - 1))
        codes = codes >> count
    return torch.stack(levels[::-1], dim=1)


def boxes_to_coordinates(boxes: Tensor, num_codes: int, codebook_size: int) -> Tensor:
    """Boxes (b, 4), see `framing`, to coordinates (b, 4) float32 in [-0.5, 0.5], in which codes add up."""
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    smallest = _smallest_size(num_codes, codebook_size)
    level = 1 + (size.clamp(0, 1) * (1 - smallest) + smallest).log() / SIZE_RANGE
    return torch.cat([centre, level], dim=1).clamp(0, 1) - 0.5


def coordinates_to_boxes(coordinates: Tensor, num_codes: int, codebook_size: int) -> Tensor:
    """The reverse of `boxes_to_coordinates`, differentiable. The smallest level is a box without extent: no object."""
    centre, level = coordinates[:, :2] + 0.5, coordinates[:, 2:] + 0.5
    smallest = _smallest_size(num_codes, codebook_size)
    size = ((((level - 1) * SIZE_RANGE).exp() - smallest) / (1 - smallest)).clamp(min=0)
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def _smallest_size(num_codes: int, codebook_size: int) -> float:
    """The least size that all codes together can name, before it is moved to zero."""
    levels = 1 << (count_bits(codebook_size)[-1] * num_codes)
    return math.exp((0.5 / levels - 1) * SIZE_RANGE)
