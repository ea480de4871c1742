"""The picture of `himtok demo`: per scene image, truth, prediction, and the mask growing with its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from himtok_plugin.masks.drawing import (
    BACKGROUND,
    FAINT,
    FRAME,
    GAP,
    INK,
    PREDICTION_COLOR,
    TRUTH_COLOR,
    Color,
    beside,
    label_font,
    overlay,
    panel_of,
    stacked,
    titled,
    to_grey,
    to_rgb,
)


@dataclass(frozen=True)
class DemoRow:
    """One scene of `demo_figure`.

    Attributes:
        title: the question, written above the row.
        image: PIL image, or uint8 (h, w, 3).
        truth: bool (h, w).
        prediction: bool (h, w), or None where the answer has no mask.
        growth: mask after so many tokens, in the order to show: {1: (h, w), 2: …}, bool or probabilities.
        note: what is known of the result, written after the title ("IoU 0.93").
    """

    title: str
    image: Image.Image | np.ndarray
    truth: np.ndarray
    prediction: np.ndarray | None
    growth: Mapping[int, np.ndarray] = field(default_factory=dict)
    note: str = ""


def demo_figure(rows: Sequence[DemoRow], height: int = 144) -> Image.Image:
    """One page: for each scene its title, then image, truth, prediction, and the mask growing token by token.

    Args:
        rows: the scenes, at least one.
        height: height of a panel in pixels.
    """
    if not rows:
        raise ValueError("rows is empty: expected at least one scene")
    blocks = []
    for row in rows:
        image = to_rgb(row.image)
        panels = [titled(panel_of(image, height), "image")]
        panels.append(titled(_overlay_panel(image, row.truth, TRUTH_COLOR, height), "truth"))
        if row.prediction is None:
            shown = _message(panel_of(image, height).size, "no mask")
        else:
            shown = _overlay_panel(image, row.prediction, PREDICTION_COLOR, height)
        panels.append(titled(shown, "prediction"))
        for count, mask in row.growth.items():
            text = f"{count} token" if count == 1 else f"{count} tokens"
            panels.append(titled(panel_of(to_grey(mask, f"growth[{count}]"), height), text))
        strip = beside(panels)
        blocks.append(stacked([_heading(row.title, row.note, strip.width), strip], margin=0))
    return stacked(blocks, margin=2 * GAP, gap=2 * GAP)


def _overlay_panel(image: Image.Image, mask: np.ndarray, color: Color, height: int) -> Image.Image:
    """A mask over its image as a panel; drawn after scaling, so that its outline is fine at every image size."""
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != (image.height, image.width):
        raise ValueError(f"mask is {mask.dtype} {mask.shape}: expected bool {image.size[::-1]}, as the image")
    panel = panel_of(image, height)
    scaled = np.asarray(Image.fromarray(mask).resize(panel.size, Image.Resampling.NEAREST))
    return overlay(panel, [scaled], colors=[color])


def _message(size: tuple[int, int], text: str) -> Image.Image:
    panel = Image.new("RGB", size, (244, 245, 247))
    draw = ImageDraw.Draw(panel)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=FRAME)
    draw.text((size[0] // 2, size[1] // 2), text, fill=FAINT, font=label_font(14), anchor="mm")
    return panel


def _heading(title: str, note: str, width: int) -> Image.Image:
    """Title at the left, note behind it; broken into lines at words where it is wider than the row."""
    font = label_font(16)
    room = max(1, width - int(font.getlength(f"   {note}")))
    lines = [""]
    for word in title.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    result = Image.new("RGB", (width, 22 * len(lines)), BACKGROUND)
    draw = ImageDraw.Draw(result)
    for i, line in enumerate(lines):
        draw.text((0, 22 * i + 10), line, fill=INK, font=font, anchor="lm")
    draw.text((font.getlength(lines[-1] + "   "), 22 * len(lines) - 12), note, fill=FAINT, font=font, anchor="lm")
    return result
