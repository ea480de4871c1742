"""The picture of `himtok demo`: for each scene the image, the true mask, the predicted mask and its decoded prefixes.

Contract: `draw_demo_figure` takes arrays and PIL images and returns a PIL image in mode RGB. A mask and an image of
different sizes raise a ValueError.
"""

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
    add_title,
    join_horizontally,
    join_vertically,
    label_font,
    make_panel,
    overlay,
    to_grey,
    to_rgb,
)

EMPTY_PANEL = (244, 245, 247)  # color of a panel without a mask


@dataclass(frozen=True)
class DemoRow:
    """One scene of `draw_demo_figure`.

    Attributes:
        title: the question, written above the panels.
        image: PIL image, or uint8 (h, w, 3).
        truth: bool (h, w).
        prediction: bool (h, w); None if the answer has no mask.
        growth: number of tokens -> mask decoded from them, bool or float in [0, 1] of any size (h, w), in the order to
            show.
        note: written after the title ("IoU 0.93").
    """

    title: str
    image: Image.Image | np.ndarray
    truth: np.ndarray
    prediction: np.ndarray | None
    growth: Mapping[int, np.ndarray] = field(default_factory=dict)
    note: str = ""


def draw_demo_figure(rows: Sequence[DemoRow], height: int = 144) -> Image.Image:
    """Draw all scenes below each other: the title, then panels with image, truth, prediction and growth.

    Args:
        rows: the scenes, at least one.
        height: height of a panel in pixels.
    Raises:
        ValueError: no scene, or a mask that does not fit its image.
    """
    if not rows:
        raise ValueError("rows is empty: expected at least one scene")
    blocks = []
    for row in rows:
        image = to_rgb(row.image)
        panels = [add_title(make_panel(image, height), "image")]
        panels.append(add_title(_overlay_panel(image, row.truth, TRUTH_COLOR, height), "truth"))
        if row.prediction is None:
            shown = _message(make_panel(image, height).size, "no mask")
        else:
            shown = _overlay_panel(image, row.prediction, PREDICTION_COLOR, height)
        panels.append(add_title(shown, "prediction"))
        for count, mask in row.growth.items():
            text = f"{count} token" if count == 1 else f"{count} tokens"
            panels.append(add_title(make_panel(to_grey(mask, f"growth[{count}]"), height), text))
        strip = join_horizontally(panels)
        blocks.append(join_vertically([_heading(row.title, row.note, strip.width), strip], margin=0))
    return join_vertically(blocks, margin=2 * GAP, gap=2 * GAP)


def _overlay_panel(image: Image.Image, mask: np.ndarray, color: Color, height: int) -> Image.Image:
    """A mask over its image as a panel; the outline is drawn after scaling and so looks alike on all images."""
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != (image.height, image.width):
        raise ValueError(f"mask is {mask.dtype} {mask.shape}: expected bool {image.size[::-1]}, as the image")
    panel = make_panel(image, height)
    scaled = np.asarray(Image.fromarray(mask).resize(panel.size, Image.Resampling.NEAREST))
    return overlay(panel, [scaled], colors=[color])


def _message(size: tuple[int, int], text: str) -> Image.Image:
    panel = Image.new("RGB", size, EMPTY_PANEL)
    draw = ImageDraw.Draw(panel)
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=FRAME)
    draw.text((size[0] // 2, size[1] // 2), text, fill=FAINT, font=label_font(14), anchor="mm")
    return panel


def _heading(title: str, note: str, width: int) -> Image.Image:
    """The title, broken into lines if it is wider than the row, with the note after it."""
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
