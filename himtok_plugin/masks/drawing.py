"""Pictures of masks: overlays on an image, coarse-to-fine strips, and the demo's page.

Purpose: let a person see what a model answered; for `himtok demo`, `--mask_dir` and reports.
Contract: takes images and masks as arrays or PIL images, returns PIL images in mode RGB, writes no files. A mask of
another size than its image is a ValueError, never a resize.
This module does not know models, codes, metrics or file formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Bright colours that differ in hue and lightness, so that neighbours are told apart on photographs.
COLORS = ((230, 60, 60), (50, 130, 246), (60, 190, 90), (250, 180, 30), (170, 90, 220), (30, 200, 210), (245, 120, 190))
TRUTH_COLOR, PREDICTION_COLOR = (40, 200, 110), (240, 50, 180)
BACKGROUND = (255, 255, 255)
INK = (30, 34, 40)
FAINT = (128, 134, 142)
FRAME = (205, 209, 214)
GAP = 8  # pixels between panels
PANEL_ASPECT = 2  # widest panel, in its heights
OUTLINE_SHARE = 250  # the outline is one pixel per 250 of the longer side, so that it shows at every size

Color = tuple[int, int, int]


def overlay(
    image: Image.Image | np.ndarray,
    masks: Iterable[np.ndarray],
    alpha: float = 0.5,
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """Tint each mask's foreground and outline it, within the mask: white, then its colour. Other pixels stay.

    Args:
        image: PIL image, or uint8 (h, w) or (h, w, 3).
        masks: bool (h, w) arrays of the image's size; later ones lie on top.
        alpha: strength of the tint in [0, 1]; the outline is always opaque.
        colors: RGB triples of 0 … 255, repeated if there are more masks; by default a palette of seven.
    Returns:
        PIL RGB image of the same size.
    Raises:
        ValueError: a mask of another size or dtype, an alpha outside [0, 1], no colors.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha!r}: expected a number in [0, 1]")
    colors = COLORS if colors is None else colors
    if not len(colors):
        raise ValueError("colors is empty: expected at least one RGB triple")
    pixels = np.asarray(to_rgb(image), dtype=np.float32).copy()
    for i, mask in enumerate(masks):
        mask = np.asarray(mask)
        if mask.dtype != bool or mask.shape != pixels.shape[:2]:
            raise ValueError(f"masks[{i}] is {mask.dtype} {mask.shape}: expected bool {pixels.shape[:2]}, as the image")
        color = np.array(colors[i % len(colors)], dtype=np.float32)
        pixels[mask] = (1 - alpha) * pixels[mask] + alpha * color
        # White around the colour: an outline in the colour alone vanishes on an object of that colour.
        width = 1 + max(mask.shape) // OUTLINE_SHARE
        pixels[_outline(mask, 2 * width)] = color
        pixels[_outline(mask, width)] = 255
    return Image.fromarray(pixels.round().astype(np.uint8))


def mask_strip(masks: Iterable[np.ndarray], labels: Sequence[str] | None = None, height: int = 128) -> Image.Image:
    """A row of masks, foreground white, with a label below each: a mask from coarse to fine.

    Args:
        masks: bool (h, w), or float (h, w) probabilities in [0, 1], shown grey.
        labels: one text per mask.
        height: height of each panel in pixels, without its label.
    Raises:
        ValueError: no mask, a wrong array, or another number of labels than of masks.
    """
    panels = [panel_of(to_grey(mask, f"masks[{i}]"), height) for i, mask in enumerate(masks)]
    if not panels:
        raise ValueError("masks is empty: expected at least one")
    if labels is not None and len(labels) != len(panels):
        raise ValueError(f"labels has {len(labels)} entries: expected one for each of the {len(panels)} masks")
    return stacked([beside([titled(p, text) for p, text in zip(panels, labels or [""] * len(panels), strict=True)])])


def comparison(image: Image.Image | np.ndarray, target: np.ndarray, prediction: np.ndarray) -> Image.Image:
    """Image, true mask on it, predicted mask on it: side by side, for logs.

    Args:
        image: see `overlay`.
        target, prediction: bool (h, w) of the image's size.
    Returns:
        PIL RGB image of the same height.
    """
    panels = [
        to_rgb(image),
        overlay(image, [target], colors=[TRUTH_COLOR]),
        overlay(image, [prediction], colors=[PREDICTION_COLOR]),
    ]
    return beside(panels)






def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    return (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).convert("RGB")


def to_grey(mask: np.ndarray, name: str) -> Image.Image:
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "bf":
        raise ValueError(f"{name} is {mask.dtype} {mask.shape}: expected bool or float (h, w)")
    return Image.fromarray((np.clip(mask.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def _outline(mask: np.ndarray, width: int) -> np.ndarray:
    """Foreground pixels within `width` steps of the background; the image's border is none."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _fit(size: tuple[int, int], height: int) -> tuple[int, int]:
    """Largest (width, height) of the same shape within the panel's height and twice its width: panoramas stay small."""
    scale = min(height / size[1], PANEL_ASPECT * height / size[0])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def panel_of(image: Image.Image, height: int) -> Image.Image:
    """Scale to a panel; small scenes stay crisp when enlarged, so that their real pixels are seen."""
    size = _fit(image.size, height)
    panel = image.resize(size, Image.Resampling.NEAREST if size[1] > image.height else Image.Resampling.LANCZOS)
    ImageDraw.Draw(panel).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=FRAME)
    return panel






def titled(panel: Image.Image, text: str) -> Image.Image:
    """A panel with its label centred below; wide enough for both."""
    if not text:
        return panel
    font = label_font(13)
    width = max(panel.width, int(font.getlength(text)) + 2)
    result = Image.new("RGB", (width, panel.height + 20), BACKGROUND)
    result.paste(panel, ((width - panel.width) // 2, 0))
    ImageDraw.Draw(result).text((width // 2, panel.height + 11), text, fill=INK, font=font, anchor="mm")
    return result




def beside(panels: Sequence[Image.Image]) -> Image.Image:
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    row = Image.new("RGB", (width, max(panel.height for panel in panels)), BACKGROUND)
    x = 0
    for panel in panels:
        row.paste(panel, (x, 0))
        x += panel.width + GAP
    return row


def stacked(blocks: Sequence[Image.Image], margin: int = GAP, gap: int = 4) -> Image.Image:
    width = max(block.width for block in blocks) + 2 * margin
    height = sum(block.height for block in blocks) + gap * (len(blocks) - 1) + 2 * margin
    page = Image.new("RGB", (width, height), BACKGROUND)
    y = margin
    for block in blocks:
        page.paste(block, (margin, y))
        y += block.height + gap
    return page


def label_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
