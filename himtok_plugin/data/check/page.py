"""The page of `himtok prepare check --html`: images with their masks and boxes, beside what is asked and answered.

Contract: one HTML file that can be read offline. Text of samples is shown as text, never as HTML. A sample that cannot
be drawn is shown with its error instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from himtok_plugin.data.samples import row_masks
from himtok_plugin.files.atomic_file import atomic_write
from himtok_plugin.files.output_file import check_replaceable_page
from himtok_plugin.mask_text import MASK_PLACEHOLDER
from himtok_plugin.masks import load_mask
from himtok_plugin.masks.drawing import COLORS, Color, overlay, to_rgb
from himtok_plugin.pages.environment import render_page

from .findings import join_root, parse_messages, row_images

SIDE = 480  # longest side of a picture, in pixels
NO_IMAGE_COLOR = (40, 44, 50)


@dataclass(frozen=True)
class MaskMention:
    """A `<mask>` in a message: the mask's number in its sample, its color in the picture, the text up to the next."""

    number: int
    color: Color
    text_after: str


@dataclass(frozen=True)
class Turn:
    """A message: its role, its text up to the first mask, its masks."""

    role: str
    text: str
    masks: list[MaskMention]


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
        turns: list[Turn] = []
        for role, text in parse_messages(row):
            turns.append(_split_at_masks(role, text, sum(len(turn.masks) for turn in turns)))
        source = row.get("source")
        names = [str(value) for value in source.values() if value] if isinstance(source, dict) else []
        return ShownSample(number, names, turns, _draw_sample(row, root))
    except Exception as error:  # whatever is wrong with one sample, the page shows the others
        return ShownSample(number, error=f"{type(error).__name__}: {error}")


def _split_at_masks(role: str, text: str, first: int) -> Turn:
    """A message as a turn; its first mask has the number `first`."""
    before, *pieces = text.split(MASK_PLACEHOLDER)
    masks = [MaskMention(i, COLORS[i % len(COLORS)], piece) for i, piece in enumerate(pieces, start=first)]
    return Turn(role, before, masks)


def _draw_sample(row: dict[str, Any], root: Path | None) -> Image.Image:
    masks = [load_mask(join_root(mask, root)) for mask in row_masks(row) or []]
    images = row_images(row)
    if images and images[0]:
        with Image.open(join_root(images[0], root)) as opened:
            image = to_rgb(opened)
    else:
        h, w = masks[0].shape if masks else (SIDE // 2, SIDE)
        image = Image.new("RGB", (w, h), NO_IMAGE_COLOR)
    scale = min(1.0, SIDE / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    shown = [np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) for mask in masks]
    picture = overlay(image.resize(size), shown)
    draw = ImageDraw.Draw(picture)
    objects = row.get("objects") or {}
    unit = image.size if objects.get("bbox_type") == "norm1" else (1, 1)
    for i, box in enumerate(objects.get("bbox") or []):
        points = [value * unit[n % 2] * scale for n, value in enumerate(box)]
        if len(points) == 4:
            draw.rectangle(points, outline=COLORS[i % len(COLORS)], width=2)
    return picture
