"""A coloured shape of a scene: its attributes and its pixels.

Contract: a `SceneShape` has the attributes that expressions use (kind, colour, size, centre); `rasterise_shape` returns
its pixels, bool (h, w). Coordinates are (x, y) in pixels, origin at the top left, y downwards.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SHAPE_KINDS = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 215, 50),
    "purple": (150, 50, 190),
    "cyan": (60, 205, 215),
}
# Half extents as a share of the image side. The gap between the ranges makes "small" and "large" easy to tell apart.
SHAPE_SIZES = {"small": (0.14, 0.17), "large": (0.23, 0.28)}

SUPERSAMPLING = 4  # A pixel belongs to a shape when at least half of its 4 x 4 sub-pixels do.
STAR_POINTS = 5
STAR_INNER_RADIUS = 0.5  # The points of an exact pentagram (0.38) would vanish at a radius of 8 pixels.


@dataclass(frozen=True)
class SceneShape:
    """A shape: one each of `SHAPE_KINDS`, `COLOURS` and `SHAPE_SIZES`, its centre and half extent."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


def shape_corners(kind: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """The corners of a polygonal ``kind`` within the box of half extent ``radius`` around (x, y)."""
    if kind == "square":
        half = radius * 0.9  # With the same box, a square would have a much larger area than the other shapes.
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    if kind == "triangle":
        return [(x, y - radius), (x + radius, y + radius * 0.8), (x - radius, y + radius * 0.8)]
    if kind == "star":
        corners = []
        for corner in range(2 * STAR_POINTS):
            reach = radius * (1.1 if corner % 2 == 0 else 1.1 * STAR_INNER_RADIUS)
            angle = math.pi * corner / STAR_POINTS
            corners.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        return corners
    raise ValueError(f"kind: got {kind!r}, expected one of {SHAPE_KINDS} with corners")


def rasterise_shape(kind: str, x: float, y: float, radius: float, side: int) -> np.ndarray:
    """The pixels of a shape: bool (side, side)."""
    scale = SUPERSAMPLING
    canvas = Image.new("L", (side * scale, side * scale))
    draw = ImageDraw.Draw(canvas)
    if kind == "circle":
        box = [(x - radius) * scale, (y - radius) * scale, (x + radius) * scale, (y + radius) * scale]
        draw.ellipse(box, fill=255)
    else:
        draw.polygon([(px * scale, py * scale) for px, py in shape_corners(kind, x, y, radius)], fill=255)
    return np.asarray(canvas.reduce(scale)) >= 128
