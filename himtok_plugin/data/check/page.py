"""The page of `himtok prepare check --html`: images with their masks and boxes, beside what is asked and answered.

Contract: one HTML file that can be read offline. Text of samples is shown as text, never as HTML. A sample that cannot
be drawn is shown with its error instead.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from himtok_plugin.data.messages import parse_messages
from himtok_plugin.data.samples import row_masks
from himtok_plugin.files.atomic_file import atomic_write
from himtok_plugin.files.output_file import check_replaceable_page
from himtok_plugin.mask_text import BOX_PLACEHOLDER, MASK_PLACEHOLDER
from himtok_plugin.masks import load_mask, mask_bbox
from himtok_plugin.masks.drawing import FAINT, TAG_HEIGHT, Color, choose_colors, draw_tag, overlay, text_color, to_rgb
from himtok_plugin.pages.environment import render_page

from .findings import join_root, row_images

SIDE = 480  # longest side of a picture, in pixels
SMALL_SIDE = 256  # smaller images are enlarged about to this side
POINT_RADIUS = 4
TINT = 0.25  # the object's own color stays visible under one that differs from it
NO_IMAGE_COLOR = (40, 44, 50)
_KINDS = {MASK_PLACEHOLDER: "mask", BOX_PLACEHOLDER: "box"}
_MENTION = re.compile("(" + "|".join(map(re.escape, _KINDS)) + ")")


@dataclass(frozen=True)
class Mention:
    """A `<mask>` or `<bbox>` in a message.

    Attributes:
        name: such as "mask 0", by its number in the sample.
        color: that of the mask or box in the picture.
        ink: color in which the name can be read on it.
        text_after: up to the next mention.
    """

    name: str
    color: Color
    ink: Color
    text_after: str


@dataclass(frozen=True)
class Turn:
    """A message: its role, its text up to the first mention, its mentions."""

    role: str
    text: str
    mentions: list[Mention]


@dataclass(frozen=True)
class Drawn:
    """A mask or a box as it is drawn.

    Attributes:
        name: see `Mention`.
        region: bool (h, w) of the picture's size: the mask, or the outline of the box.
        corner: x and y of the lower left corner of its number.
    """

    name: str
    region: np.ndarray
    corner: tuple[float, float]


@dataclass(frozen=True)
class ShownSample:
    """What the template shows of a sample; `error` alone where the sample cannot be drawn.

    Attributes:
        number: of the row, counted from 1.
        source: dataset, split and so on.
        turns: all messages.
        picture: the first image with masks and boxes.
        error: why the sample cannot be drawn.
    """

    number: int
    source: list[str] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    picture: Image.Image | None = None
    error: str = ""


def write_sample_page(lines: Sequence[tuple[int, bytes]], out: Path, title: str, root: Path | None = None) -> None:
    """Write the page.

    Args:
        lines: (number of the row, its JSON).
        out: the HTML file.
        title: heading of the page.
        root: folder of relative images and masks.
    """
    samples = [_load_shown_sample(number, line, root) for number, line in lines]
    check_replaceable_page(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as file:
        file.write(render_page("sample_check.html.j2", title=title, samples=samples))


def _load_shown_sample(number: int, line: bytes, root: Path | None) -> ShownSample:
    try:
        row = json.loads(line)
        messages = parse_messages(row)
        picture, colors = _draw_sample(row, root)
        counts: Counter[str] = Counter()
        turns = [_split_at_mentions(role, text, colors, counts) for role, text in messages]
        source = row.get("source")
        names = [str(value) for value in source.values() if value] if isinstance(source, dict) else []
        return ShownSample(number, names, turns, picture)
    except Exception as error:  # whatever is wrong with one sample, the page shows the others
        return ShownSample(number, error=f"{type(error).__name__}: {error}")


def _split_at_mentions(role: str, text: str, colors: dict[str, Color], counts: Counter[str]) -> Turn:
    """A message as a turn.

    Args:
        role, text: the message.
        colors: name of a mask or a box -> its color in the picture.
        counts: how many masks and boxes earlier messages mention; this one's are added.
    """
    before, *pieces = _MENTION.split(text)
    mentions = []
    for placeholder, text_after in zip(pieces[::2], pieces[1::2], strict=True):
        kind = _KINDS[placeholder]
        name = f"{kind} {counts[kind]}"
        counts[kind] += 1
        color = colors.get(name, FAINT)  # without a picture of it, as on a second image
        mentions.append(Mention(name, color, text_color(color), text_after))
    return Turn(role, before, mentions)


def _draw_sample(row: dict[str, Any], root: Path | None) -> tuple[Image.Image, dict[str, Color]]:
    """Draw a sample; return the picture, and the color of each mask and box by its name."""
    masks = [load_mask(join_root(mask, root)) for mask in row_masks(row) or []]
    images = row_images(row)
    if images and images[0]:
        with Image.open(join_root(images[0], root)) as opened:
            image = to_rgb(opened)
    else:
        h, w = masks[0].shape if masks else (SIDE // 2, SIDE)
        image = Image.new("RGB", (w, h), NO_IMAGE_COLOR)
    longest = max(image.size)
    scale = SIDE / longest if longest > SIDE else max(1, SMALL_SIDE // longest)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    picture = image.resize(size, Image.Resampling.NEAREST if scale > 1 else None)
    drawn_masks = [_place_mask(f"mask {i}", mask, size) for i, mask in enumerate(masks)]
    drawn_boxes = _place_boxes(row.get("objects") or {}, image.size, size)
    drawn = drawn_masks + drawn_boxes
    chosen = choose_colors(picture, [each.region for each in drawn])
    colors = {each.name: color for each, color in zip(drawn, chosen, strict=True)}
    picture = overlay(picture, [mask.region for mask in drawn_masks], TINT, chosen or None)
    pixels = np.array(picture)
    for box in drawn_boxes:
        pixels[box.region] = colors[box.name]
    picture = Image.fromarray(pixels)
    for each in drawn:
        draw_tag(picture, each.corner, each.name.split()[1], colors[each.name])
    return picture, colors


def _place_mask(name: str, mask: np.ndarray, size: tuple[int, int]) -> Drawn:
    shown = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    x, y, _, _ = mask_bbox(shown)
    return Drawn(name, shown, (x, y))


def _place_boxes(objects: dict[str, Any], image: tuple[int, int], picture: tuple[int, int]) -> list[Drawn]:
    """The boxes and points of the first image.

    Args:
        objects: in ms-swift's format.
        image, picture: width and height.
    """
    unit = (1, 1) if objects.get("bbox_type") == "norm1" else image
    numbers = objects.get("image_id") or []
    drawn = []
    for i, box in enumerate(objects.get("bbox") or []):
        if i < len(numbers) and numbers[i]:
            continue
        points = [value / unit[n % 2] * picture[n % 2] for n, value in enumerate(box)]
        canvas = Image.new("1", picture)
        if len(points) == 4:
            ImageDraw.Draw(canvas).rectangle(points, outline=1, width=2)
            corner = points[0], points[3] + TAG_HEIGHT  # the number of a mask is above it
        else:
            ImageDraw.Draw(canvas).circle(points, POINT_RADIUS, fill=1)
            corner = points[0] + 2 * POINT_RADIUS, points[1]
        drawn.append(Drawn(f"box {i}", np.array(canvas), corner))
    return drawn
