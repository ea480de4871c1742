"""The HTML page of `himtok eval --compare`: numbers with intervals, and the rows that differ most as overlays.

Contract: one file that holds its pictures, so that it can be sent around. Reads both result files once, keeping the
rows that are shown. Does not know how runs are compared.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.data.samples import find_file
from himtok_plugin.masks.drawing import COLORS, overlay

from .comparison import RowDifference, RunComparison, result_key
from .scoring import masks_of_row, question_of, read_results, with_min_score

SHOWN = 20  # rows of either sign
LONGEST_SIDE = 480  # of a picture, in pixels
GREY = 128
_STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:110em}td,th{padding:.2em .8em;text-align:right}"
    "figure{display:inline-block;margin:.3em}figcaption{color:#555}img{max-width:32vw}h3{font-weight:normal}"
)


def write_comparison_page(
    path: Path,
    a: str | Path,
    b: str | Path,
    comparison: RunComparison,
    root: str | Path | None = None,
    min_score: float = 0.0,
    shown: int = SHOWN,
) -> None:
    """Write the page.

    Args:
        path: of the page.
        a, b: the result files that were compared.
        comparison: of them.
        root, min_score: as they were compared with.
        shown: at most so many rows that fell, and as many that rose.
    """
    fell = [row for row in comparison.rows[:shown] if row.b < row.a]
    rose = [row for row in comparison.rows[::-1][:shown] if row.b > row.a]
    wanted = {row.key for row in (*fell, *rose)}
    rows = [
        {key: row for number, row in read_results(file) if (key := result_key(row, number)) in wanted}
        for file in (a, b)
    ]
    names = [html.escape(str(file)) for file in (a, b)]
    parts = [
        f"<!doctype html><meta charset=utf-8><title>{names[0]} and {names[1]}</title><style>{_STYLE}</style>",
        f"<h1>a: {names[0]}<br>b: {names[1]}</h1>",
        f"<p>Protocol {html.escape(comparison.protocol.name)}: {html.escape(comparison.protocol.summary)} "
        f"{len(comparison.rows)} rows about {comparison.images} images; intervals of {comparison.confidence:.0%} by "
        f"{comparison.resamples} draws of images.</p>",
        "<table><tr><th>metric<th>a<th>b<th>b − a<th>interval</tr>",
    ]
    for each in comparison.differences:
        known = each.a is not None and each.b is not None
        cells = [_number(each.a), _number(each.b), _number(each.b - each.a if known else None, "+")]
        interval = "-" if each.low is None else f"{each.low:+.4f} to {each.high:+.4f}"
        marked = f"<b>{interval}</b>" if each.significant else interval
        parts.append(f"<tr><td>{html.escape(each.name)}<td>" + "<td>".join([*cells, marked]) + "</tr>")
    parts.append("</table>")
    for title, chosen in (("b is worse", fell), ("b is better", rose)):
        parts.append(f"<h2>{title}: {len(chosen)} rows</h2>")
        parts += [_row(each, rows[0][each.key], rows[1][each.key], root, min_score) for each in chosen]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _row(each: RowDifference, a: dict[str, Any], b: dict[str, Any], root, min_score: float) -> str:
    a, b = with_min_score(a, min_score), with_min_score(b, min_score)
    predicted, true, ignore = masks_of_row(a, root)
    other = masks_of_row(b, root)[0]
    image = _image(a, max((masks.size for masks in (true, predicted, other)), key=lambda size: size[0] * size[1]))
    pictures = [_figure(image, "image")]
    for masks, title, color in (
        (true, "truth", 0),
        (predicted, f"a: IoU {each.a:.3f}", 1),
        (other, f"b: IoU {each.b:.3f}", 2),
    ):
        shown = [masks.union()] if masks else []
        pictures.append(_figure(overlay(image, shown, colors=[COLORS[color % len(COLORS)]]), title))
    if ignore:
        pictures.append(_figure(overlay(image, [ignore.union()]), "ignored"))
    answers = "".join(
        f"<br>{name}: {html.escape(str(row.get('response') or '')[:200])}" for name, row in (("a", a), ("b", b))
    )
    return f"<h3>row {html.escape(str(each.key))}: {html.escape(question_of(a))}{answers}</h3>{''.join(pictures)}"


def _image(row: dict[str, Any], size: tuple[int, int]) -> Image.Image:
    """The row's first image, or grey of the masks' size where it is not at hand."""
    images = row.get("images") or []
    first = images[0].get("path") if images and isinstance(images[0], dict) else images[0] if images else None
    try:
        image = Image.open(find_file(first)).convert("RGB")
    except Exception:  # PIL's readers raise nearly anything on damaged files; the masks are what is to be seen
        image = None
    if image is None or (image.height, image.width) != tuple(size):
        return Image.fromarray(np.full((*size, 3), GREY, np.uint8))
    return image


def _figure(picture: Image.Image, title: str) -> str:
    picture = picture.copy()
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<figure><img src="data:image/jpeg;base64,{data}"><figcaption>{html.escape(title)}</figcaption></figure>'


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"
