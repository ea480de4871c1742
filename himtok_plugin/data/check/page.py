"""A page of sample rows to look at: images with their masks and boxes, beside what is asked and answered.

Contract: one HTML file without anything else, readable offline. Text of rows is shown as text, never as HTML. A row
that cannot be drawn says why. Does not know where rows come from.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from himtok_plugin.data.prepare import replacing
from himtok_plugin.data.samples import row_masks
from himtok_plugin.mask_text import MASK_PLACEHOLDER
from himtok_plugin.masks.drawing import COLORS, overlay
from himtok_plugin.masks.sources import load_mask

from .findings import as_images, located, messages_of

SIDE = 480  # longest side of a picture
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1100px; color: #1e2228; padding: 0 1em }
article { display: flex; flex-wrap: wrap; gap: 1.2em; border-top: 1px solid #cdd1d6; padding: 1.2em 0 }
article > div { flex: 1; min-width: 300px }
img { max-width: 100%; align-self: flex-start }
p { margin: .3em 0; white-space: pre-wrap; overflow-wrap: anywhere }
.role, .source { color: #80868e; font-size: 13px }
.mask { color: #fff; border-radius: 4px; padding: 0 .4em; font-size: 13px }
.fault { color: #b00020 }
"""


def write_page(lines: Sequence[tuple[int, bytes]], out: Path, title: str, root: Path | None = None) -> None:
    """Write the page of some rows.

    Args:
        lines: (number of the row, its JSON).
        root: where relative images and masks start from.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    body = "\n".join(_article(number, line, root) for number, line in lines)
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    with replacing(out) as file:
        file.write(page.encode("utf-8", "replace"))


def _article(number: int, line: bytes, root: Path | None) -> str:
    try:
        row = json.loads(line)
        messages = messages_of(row)
        parts = [f'<p class="source">row {number}{_source(row)}</p>']
        mask = 0
        for role, text in messages:
            shown, mask = _text(text, mask)
            parts.append(f'<p><span class="role">{html.escape(role)}:</span> {shown}</p>')
        picture = _picture(row, root)
    except Exception as error:  # whatever is wrong with a row, the others are to be seen
        shown = html.escape(f"{type(error).__name__}: {error}")
        return f'<article><div><p class="source">row {number}</p><p class="fault">{shown}</p></div></article>'
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<article><img src="data:image/jpeg;base64,{data}" alt=""><div>{"".join(parts)}</div></article>'


def _source(row: dict[str, Any]) -> str:
    source = row.get("source")
    return "" if not isinstance(source, dict) else html.escape(": " + ", ".join(f"{v}" for v in source.values() if v))


def _text(text: str, mask: int) -> tuple[str, int]:
    """The text with each `<mask>` in its mask's colour; the number of the next mask."""
    first, *rest = text.split(MASK_PLACEHOLDER)
    shown = html.escape(first)
    for piece in rest:
        colour = "rgb({}, {}, {})".format(*COLORS[mask % len(COLORS)])
        shown += f'<span class="mask" style="background: {colour}">mask {mask}</span>{html.escape(piece)}'
        mask += 1
    return shown, mask


def _picture(row: dict[str, Any], root: Path | None) -> Image.Image:
    masks = [load_mask(located(mask, root)) for mask in row_masks(row) or []]
    images = as_images(row)
    if images and images[0]:
        with Image.open(located(images[0], root)) as opened:
            image = opened.convert("RGB")
    else:
        h, w = masks[0].shape if masks else (SIDE // 2, SIDE)
        image = Image.new("RGB", (w, h), (40, 44, 50))
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
