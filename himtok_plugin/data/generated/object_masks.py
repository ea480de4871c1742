"""Generated masks of objects like those in photographs: of any outline and size, cut off by the border or occluded.

For training a mask tokenizer on more masks than a dataset has. `generate_object_masks` draws random outlines;
`move_mask` moves, scales, stretches and tilts a given mask. Everything follows from the seed or the generator.
Contract: masks are bool (h, w), never empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

# (h, w) of images in COCO: the longer side is 640.
PICTURE_SIZES = ((480, 640), (427, 640), (640, 480), (640, 427), (640, 640), (512, 640), (360, 640))
# Square root of an object's area as a share of the image's, from COCO's smallest objects to nearly the whole image.
MIN_EXTENT, MAX_EXTENT = 0.015, 0.85
OUTLINE_POINTS = 72
WAVES = 8  # of a blob's outline
OCCLUDED_SHARE = 0.3  # of the objects
SEVERAL_PARTS_SHARE = 0.12  # of the objects
MIN_PIXELS = 12
MIN_VISIBLE_OBJECT = 0.5  # the share of an object that is inside the image and not occluded
TRIES = 30
MOVE_SCALES = (0.4, 2.5)
MAX_TILT = 25.0  # degrees
MAX_STRETCH = 1.35  # of one side relative to the other

Outline = np.ndarray  # (points, 2) float, x and y, around the origin, about the size of the unit square


def generate_object_masks(count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `count` masks, bool (h, w), of the sizes in `PICTURE_SIZES`."""
    if count < 0:
        raise ValueError(f"count: got {count}, expected 0 or more")
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield generate_object_mask(PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))], rng)


def generate_object_mask(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """The mask of a random object in an image of `size` (h, w): bool (h, w), at least `MIN_PIXELS` True."""
    while True:
        extent = math.exp(rng.uniform(math.log(MIN_EXTENT), math.log(MAX_EXTENT))) * math.sqrt(size[0] * size[1])
        parts = 1 if rng.random() > SEVERAL_PARTS_SHARE else int(rng.integers(2, 4))
        whole, visible = _draw_object(size, extent, parts, rng)
        if rng.random() < OCCLUDED_SHARE:
            visible &= ~_draw_occluder(size, visible, extent, rng)
        if visible.sum() >= max(MIN_PIXELS, MIN_VISIBLE_OBJECT * whole):
            return visible


def _draw_object(
    size: tuple[int, int], extent: float, parts: int, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Draw an object; returns its full area in pixels, at most the image's, and its mask in the image."""
    height, width = size
    centre = rng.uniform((0, 0), (width, height))
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    area = 0.0
    for part in range(parts):
        corners = _transform_outlines(_random_outlines(rng), extent / math.sqrt(parts), rng)
        offset = centre if part == 0 else centre + rng.normal(0, 0.6 * extent, 2)
        for outline in corners:
            draw.polygon([tuple(point) for point in outline + offset], fill=1)
            area += _outline_area(outline)
    return min(area, height * width), np.array(canvas)


def _random_outlines(rng: np.random.Generator) -> list[Outline]:
    return OBJECT_OUTLINES[rng.choice(len(OBJECT_OUTLINES))](rng)


def _transform_outlines(outlines: list[Outline], extent: float, rng: np.random.Generator) -> list[Outline]:
    """Rotate, stretch and scale outlines at random, to a total area of extent^2 pixels."""
    angle = rng.uniform(0, 2 * math.pi)
    stretch = math.exp(rng.normal(0, 0.4))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    shaped = [outline * (stretch, 1 / stretch) @ turn.T for outline in outlines]
    scale = extent / math.sqrt(max(sum(map(_outline_area, shaped)), 1e-3))
    return [outline * scale for outline in shaped]


def _outline_area(outline: Outline) -> float:
    x, y = outline.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _draw_occluder(size: tuple[int, int], mask: np.ndarray, extent: float, rng: np.random.Generator) -> np.ndarray:
    """A mask in front of the object, of a similar size, near one of its pixels."""
    height, width = size
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return mask
    pick = rng.integers(len(rows))
    centre = np.array([columns[pick], rows[pick]]) + rng.normal(0, 0.5 * extent, 2)
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for outline in _transform_outlines(_random_outlines(rng), extent * math.exp(rng.uniform(-1.0, 0.3)), rng):
        draw.polygon([tuple(point) for point in outline + centre], fill=1)
    return np.array(canvas)


# ----- kinds of outlines


def _blob_outline(rng: np.random.Generator) -> list[Outline]:
    """A smooth closed curve: a circle with waves that get smaller as they get shorter."""
    angles = np.linspace(0, 2 * math.pi, OUTLINE_POINTS, endpoint=False)
    radius = np.ones(OUTLINE_POINTS)
    strength = rng.uniform(0.1, 0.6)
    for wave in range(2, WAVES + 1):
        radius += strength * rng.normal() / wave**1.2 * np.cos(wave * angles + rng.uniform(0, 2 * math.pi))
    return [np.stack([np.cos(angles), np.sin(angles)], 1) * np.maximum(radius, 0.15)[:, None]]


def _polygon_outline(rng: np.random.Generator) -> list[Outline]:
    """Corners at any distance around a centre: convex or jagged."""
    corners = int(rng.integers(3, 12))
    angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
    radius = 1 - rng.uniform(0, 0.7) * rng.random(corners)
    return [np.stack([np.cos(angles), np.sin(angles)], 1) * radius[:, None]]


def _superellipse_outline(rng: np.random.Generator) -> list[Outline]:
    """A diamond, an ellipse, a box with round corners, or a shape between these."""
    angles = np.linspace(0, 2 * math.pi, OUTLINE_POINTS, endpoint=False)
    power = 2 / math.exp(rng.uniform(math.log(0.9), math.log(10)))
    x, y = np.cos(angles), np.sin(angles)
    return [np.stack([np.sign(x) * np.abs(x) ** power, np.sign(y) * np.abs(y) ** power], 1)]


def _quadrilateral_outline(rng: np.random.Generator) -> list[Outline]:
    """A quadrilateral near a square, like a door, a screen, or a car from the side."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
    return [corners + rng.normal(0, rng.uniform(0, 0.25), (4, 2))]


def _body_outlines(rng: np.random.Generator) -> list[Outline]:
    """A body with a head and limbs, like people and animals: overlapping capsules that meet in joints."""
    body = _capsule_outline((0, -0.5), (0, 0.5), rng.uniform(0.25, 0.5))
    head_at = (rng.normal(0, 0.15), -rng.uniform(0.8, 1.1))
    parts = [body, _capsule_outline(head_at, head_at, rng.uniform(0.18, 0.32))]
    for joint in ((-0.2, 0.5), (0.2, 0.5), (-0.25, -0.35), (0.25, -0.35)):
        if rng.random() < 0.8:
            side = math.copysign(1, joint[0])
            bend = math.pi / 2 * (1 if joint[1] > 0 else rng.uniform(-0.6, 1.2)) + rng.normal(0, 0.4)
            length = rng.uniform(0.5, 1.2)
            knee = joint + length / 2 * np.array([math.cos(bend) * side, math.sin(bend)])
            bend += rng.normal(0, 0.5)
            foot = knee + length / 2 * np.array([math.cos(bend) * side, math.sin(bend)])
            thickness = rng.uniform(0.08, 0.18)
            parts += [_capsule_outline(joint, knee, thickness), _capsule_outline(knee, foot, thickness)]
    return parts


def _chain_outlines(rng: np.random.Generator) -> list[Outline]:
    """A long bent shape, like a tie, a handle, skis or a branch."""
    points = [np.zeros(2)]
    direction = rng.uniform(0, 2 * math.pi)
    for _ in range(int(rng.integers(1, 6))):
        direction += rng.normal(0, 0.6)
        points.append(points[-1] + np.array([math.cos(direction), math.sin(direction)]))
    thickness = math.exp(rng.uniform(math.log(0.08), math.log(0.5)))
    middle = np.mean(points, axis=0)
    return [_capsule_outline(a - middle, b - middle, thickness) for a, b in zip(points[:-1], points[1:], strict=True)]


def _capsule_outline(start: ArrayLike, end: ArrayLike, radius: float) -> Outline:
    """The points at most `radius` from the line segment between two points."""
    start, end = np.asarray(start, float), np.asarray(end, float)
    along = math.atan2(*(end - start)[::-1])
    cap = np.linspace(-math.pi / 2, math.pi / 2, 9)
    front = end + radius * np.stack([np.cos(along + cap), np.sin(along + cap)], 1)
    back = start - radius * np.stack([np.cos(along + cap), np.sin(along + cap)], 1)
    return np.concatenate([front, back])


OBJECT_OUTLINES: tuple[Callable[[np.random.Generator], list[Outline]], ...] = (
    _blob_outline,
    _polygon_outline,
    _superellipse_outline,
    _quadrilateral_outline,
    _body_outlines,
    _chain_outlines,
)


# ----- moving given masks


def move_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move the object of a mask at random: mirrored or not, tilted, stretched, scaled, to another place in the image.

    Args:
        mask: bool (h, w), not empty.

    Returns:
        bool (h, w) with at least `MIN_VISIBLE_OBJECT` of the object; the mask itself if `TRIES` tries do not give one.

    Raises:
        ValueError: the mask is empty.
    """
    height, width = mask.shape
    picture = Image.fromarray(mask)
    box = picture.getbbox()
    if box is None:
        raise ValueError("mask is empty: expected at least one pixel to move")
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])
    for _ in range(TRIES):
        scale = math.exp(rng.uniform(*np.log(MOVE_SCALES)))
        stretch = math.exp(rng.uniform(-1, 1) * math.log(MAX_STRETCH) / 2)
        angle = math.radians(rng.uniform(-MAX_TILT, MAX_TILT) * rng.integers(2))
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        # PIL's transform maps each pixel of the new image to its position in the old one.
        back = np.diag([rng.choice((-1, 1)) / (scale * stretch), stretch / scale]) @ turn
        x, y = rng.uniform((0, 0), (width, height))
        shift = centre - back @ (x, y)
        affine = (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1])
        seen = np.array(picture.transform((width, height), Image.Transform.AFFINE, affine))
        if seen.sum() >= max(MIN_PIXELS, MIN_VISIBLE_OBJECT * scale**2 * mask.sum()):
            return seen
    return mask
