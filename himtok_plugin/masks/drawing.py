"""Pictures of masks: overlays on an image, strips from coarse to fine, side-by-side comparisons.

Contract: takes images and masks as arrays or PIL images and returns PIL images in mode RGB. A mask of another size than
its image is a ValueError; masks are never resized to fit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from himtok_plugin.files.images import to_upright_rgb

from .bounding_box import mask_bbox

# Bright colours of different hue and lightness, so that neighbouring masks can be distinguished on photographs.
COLORS = ((230, 60, 60), (50, 130, 246), (60, 190, 90), (250, 180, 30), (170, 90, 220), (30, 200, 210), (245, 120, 190))
TRUTH_COLOR, PREDICTION_COLOR = (40, 200, 110), (240, 50, 180)
BACKGROUND = (255, 255, 255)
INK = (30, 34, 40)
FAINT = (128, 134, 142)
FRAME = (205, 209, 214)
GAP = 8  # pixels between panels
PANEL_ASPECT = 2  # maximum width of a panel divided by its height
OUTLINE_SHARE = 250  # the outline has one pixel of width per 250 pixels of the longer side
CONTRAST = 200  # distance from which a color is told apart from the pixels below; black and white are 765 apart
TAG_HEIGHT = 16  # pixels, at scale 1
TAG_TEXT = 12  # points
TAG_SHARE = 1000  # pixels of the longer side at which a picture is looked at; tags of larger ones grow with them
_NO_GLYPH = "\U0010ffff"  # no font has one
COMPARED_PIXELS = 2000  # of a region, for its color

Color = tuple[int, int, int]


def overlay(
    image: Image.Image | np.ndarray,
    masks: Iterable[np.ndarray],
    alpha: float = 0.5,
    colors: Sequence[Color] | None = None,
) -> Image.Image:
    """Tint the foreground of each mask and draw its outline inside it, a white line and a coloured one.

    Args:
        image: PIL image, or uint8 (h, w) or (h, w, 3).
        masks: bool (h, w), of the image's size; later masks are drawn over earlier ones.
        alpha: strength of the tint in [0, 1]; the outline is always opaque.
        colors: RGB triples of 0 … 255, reused if there are more masks; by default a palette of seven.
    Returns:
        PIL RGB image of the same size.
    Raises:
        ValueError: a mask of another size or dtype, alpha outside [0, 1], or empty colors.
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
        x1, y1, x2, y2 = mask_bbox(mask)
        if not x2:
            continue
        # Only the mask's box and a pixel around it, because an outline of a large image takes seconds.
        box = slice(max(y1 - 1, 0), y2 + 1), slice(max(x1 - 1, 0), x2 + 1)
        part, shown = mask[box], pixels[box]
        shown[part] = (1 - alpha) * shown[part] + alpha * color
        # The white line is needed because the coloured one is invisible on an object of that colour.
        width = 1 + max(mask.shape) // OUTLINE_SHARE
        inner = _erode(part, width)
        shown[part & ~_erode(inner, width)] = color
        shown[part & ~inner] = 255
    return Image.fromarray(pixels.round().astype(np.uint8))


def choose_colors(
    image: Image.Image | np.ndarray, regions: Iterable[np.ndarray], palette: Sequence[Color] = COLORS
) -> list[Color]:
    """Choose a color for each region that differs from the pixels below it and, where possible, from the others.

    Args:
        image: see `overlay`.
        regions: bool (h, w) of the image's size, such as masks, or the outlines of boxes.
        palette: RGB triples of 0 … 255.
    """
    pixels = np.asarray(to_rgb(image))
    unused, chosen = list(palette), []
    for region in regions:
        below = pixels[region]
        below = below[:: max(1, len(below) // COMPARED_PIXELS)]
        contrasts = {color: _contrast(below, color) for color in palette}
        best = max(unused, key=lambda color: contrasts[color])
        if contrasts[best] < CONTRAST:
            best = max(palette, key=lambda color: contrasts[color])
        chosen.append(best)
        unused = [color for color in unused if color != best] or list(palette)
    return chosen


def _contrast(pixels: np.ndarray, color: Color) -> float:
    """Mean distance of pixels (n, 3) to a color, weighted by what eyes see (the "redmean" formula); 0 of no pixels."""
    if not len(pixels):
        return 0.0
    difference = pixels.astype(np.float64) - color
    red = (pixels[:, 0] + float(color[0])) / 2
    weights = np.stack([2 + red / 256, np.full_like(red, 4), 2 + (255 - red) / 256], axis=1)
    return float(np.sqrt((weights * difference**2).sum(axis=1)).mean())


def text_color(background: Color) -> Color:
    """White or dark, whichever can be read on a background."""
    red, green, blue = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else BACKGROUND


def can_draw(text: str) -> bool:
    """Whether the built-in font has all characters of a text; it has the Latin ones without accents."""
    font = label_font(TAG_TEXT)
    missing = bytes(font.getmask(_NO_GLYPH))
    return all(bytes(font.getmask(character)) != missing for character in set(text))


def draw_tag(picture: Image.Image, corner: tuple[float, float], text: str, color: Color, scale: float = 1) -> None:
    """Draw a text on a filled rectangle with a white edge, in place, moved so that it lies within the picture.

    Args:
        picture: mode RGB.
        corner: x and y of the rectangle's lower left corner.
        text: a word.
        color: of the rectangle.
        scale: size of the tag; 1 for pictures that are shown pixel by pixel.
    """
    draw, font = ImageDraw.Draw(picture), label_font(round(TAG_TEXT * scale))
    width, height = int(font.getlength(text) + 7 * scale), round(TAG_HEIGHT * scale)
    x = max(0, min(round(corner[0]), picture.width - width))
    y = max(0, min(round(corner[1]) - height, picture.height - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color, outline=BACKGROUND)
    draw.text((x + width / 2, y + height / 2), text, fill=text_color(color), font=font, anchor="mm")


def draw_mask_tag(
    picture: Image.Image, mask: np.ndarray, color: Color, label: str, number: int, score: str = ""
) -> None:
    """Draw what a mask is called at its topmost pixel, in place and readable in large pictures; nothing if it is empty.

    Args:
        picture: mode RGB.
        mask: bool (h, w), of the picture's size.
        color: of the tag.
        label: what the mask is called.
        number: replaces a label that the built-in font cannot write.
        score: follows the label.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size:
        corner = float(np.flatnonzero(mask[rows[0]])[0]), float(rows[0])
        text = f"{label if can_draw(label) else number} {score}".strip()
        draw_tag(picture, corner, text, color, max(1.0, max(picture.size) / TAG_SHARE))


def draw_mask_strip(masks: Iterable[np.ndarray], labels: Sequence[str] | None = None, height: int = 128) -> Image.Image:
    """Masks in a row with labels below them, such as one mask from coarse to fine; foreground is white.

    Args:
        masks: bool (h, w), or float (h, w) probabilities in [0, 1], drawn as grey levels.
        labels: one text per mask.
        height: height of each panel in pixels, without its label.
    Raises:
        ValueError: no masks, an array of another shape or dtype, or not one label per mask.
    """
    panels = [make_panel(to_grey(mask, f"masks[{i}]"), height) for i, mask in enumerate(masks)]
    if not panels:
        raise ValueError("masks is empty: expected at least one")
    if labels is not None and len(labels) != len(panels):
        raise ValueError(f"labels has {len(labels)} entries: expected one for each of the {len(panels)} masks")
    return join_vertically(
        [join_horizontally([add_title(p, text) for p, text in zip(panels, labels or [""] * len(panels), strict=True)])]
    )


def draw_comparison(image: Image.Image | np.ndarray, target: np.ndarray, prediction: np.ndarray) -> Image.Image:
    """The image, the image with the true mask, and the image with the predicted mask, side by side.

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
    return join_horizontally(panels)


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """PIL image, or uint8 (h, w) or (h, w, 3), as a PIL image in mode RGB, turned upright by its EXIF orientation.

    Raises:
        ValueError: more than 8 bits per channel.
    """
    return to_upright_rgb(image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image)), "image")


def to_grey(mask: np.ndarray, name: str) -> Image.Image:
    """Mask, bool or float in [0, 1] (h, w), as a grey PIL image in mode RGB; errors begin with `name`."""
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype.kind not in "bf":
        raise ValueError(f"{name} is {mask.dtype} {mask.shape}: expected bool or float (h, w)")
    return Image.fromarray((np.clip(mask.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)).convert("RGB")


def _erode(mask: np.ndarray, width: int) -> np.ndarray:
    """Foreground pixels more than `width` steps from background; the image's border does not count as background."""
    for _ in range(width):
        inner = mask.copy()
        inner[1:] &= mask[:-1]
        inner[:-1] &= mask[1:]
        inner[:, 1:] &= mask[:, :-1]
        inner[:, :-1] &= mask[:, 1:]
        mask = inner
    return mask


def _fit(size: tuple[int, int], height: int) -> tuple[int, int]:
    """Largest (width, height) of the same aspect ratio that is at most `height` high and twice as wide."""
    scale = min(height / size[1], PANEL_ASPECT * height / size[0])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def make_panel(image: Image.Image, height: int) -> Image.Image:
    """Scale an image to the height of a panel and frame it. Enlarging keeps the pixels visible as squares."""
    size = _fit(image.size, height)
    panel = image.resize(size, Image.Resampling.NEAREST if size[1] > image.height else Image.Resampling.LANCZOS)
    ImageDraw.Draw(panel).rectangle((0, 0, size[0] - 1, size[1] - 1), outline=FRAME)
    return panel


def add_title(panel: Image.Image, text: str) -> Image.Image:
    """Add a centred label below a panel, widening it if the label is wider."""
    if not text:
        return panel
    font = label_font(13)
    width = max(panel.width, int(font.getlength(text)) + 2)
    result = Image.new("RGB", (width, panel.height + 20), BACKGROUND)
    result.paste(panel, ((width - panel.width) // 2, 0))
    ImageDraw.Draw(result).text((width // 2, panel.height + 11), text, fill=INK, font=font, anchor="mm")
    return result


def join_horizontally(panels: Sequence[Image.Image]) -> Image.Image:
    """Join panels horizontally, aligned at the top."""
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    row = Image.new("RGB", (width, max(panel.height for panel in panels)), BACKGROUND)
    x = 0
    for panel in panels:
        row.paste(panel, (x, 0))
        x += panel.width + GAP
    return row


def join_vertically(blocks: Sequence[Image.Image], margin: int = GAP, gap: int = 4) -> Image.Image:
    """Join blocks vertically, aligned at the left, with a margin around the page; distances in pixels."""
    width = max(block.width for block in blocks) + 2 * margin
    height = sum(block.height for block in blocks) + gap * (len(blocks) - 1) + 2 * margin
    page = Image.new("RGB", (width, height), BACKGROUND)
    y = margin
    for block in blocks:
        page.paste(block, (margin, y))
        y += block.height + gap
    return page


def label_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in font at a size in points."""
    return ImageFont.load_default(size)
