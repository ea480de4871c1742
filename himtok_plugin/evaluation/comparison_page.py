"""The HTML page of `himtok eval --compare`: numbers with intervals, and the results that differ most, as pictures.

Contract: one HTML file that holds its pictures. Both result files are read once; only the results that the page shows
stay in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.data.samples import find_file
from himtok_plugin.files.output_file import check_replaceable_page
from himtok_plugin.masks.drawing import COLORS, overlay, to_rgb
from himtok_plugin.pages.environment import render_page

from .comparison import Difference, ResultDifference, RunComparison
from .results import ERROR, PREDICTED, drop_low_scores, get_question, load_result_masks, read_results

SHOWN = 20  # results that got worse, and as many that got better
LONGEST_SIDE = 480  # of a picture, in pixels
LONGEST_ANSWER = 200  # characters
GREY = 128  # of the background of masks whose image is missing


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
        path: the HTML file.
        a, b: the result files that were compared.
        comparison: what `compare_results` returned for them.
        root, min_score: the values given to `compare_results`.
        shown: the page shows at most this many results whose IoU fell, and as many whose IoU rose.
    """
    fell = [row for row in comparison.rows[:shown] if row.b < row.a]
    rose = [row for row in comparison.rows[::-1][:shown] if row.b > row.a]
    in_a, in_b = (_read_lines(file, {each.lines[i] for each in (*fell, *rose)}) for i, file in enumerate((a, b)))

    def show(rows: Sequence[ResultDifference]) -> list[dict[str, Any]]:
        return [_show_row(each, in_a[each.lines[0]], in_b[each.lines[1]], root, min_score) for each in rows]

    sections = [{"title": "b is worse", "rows": show(fell)}, {"title": "b is better", "rows": show(rose)}]
    page = render_page(
        "comparison.html.j2",
        title=f"{a} and {b}",
        a=str(a),
        b=str(b),
        comparison=comparison,
        metrics=[_show_metric(each) for each in comparison.differences],
        sections=sections,
    )
    check_replaceable_page(path)
    path.write_bytes(page)


def _read_lines(path: str | Path, lines: set[int]) -> dict[int, dict[str, Any]]:
    """Read the results on these lines. One with an error has no masks and shows the error as its answer."""
    found = {line: row for line, row in read_results(path) if line in lines}
    return {
        line: row if row.get(ERROR) is None else {**row, PREDICTED: [], "response": f"error: {row[ERROR]}"}
        for line, row in found.items()
    }


def _show_metric(each: Difference) -> dict[str, Any]:
    return {
        "name": each.name,
        "a": _format_number(each.a),
        "b": _format_number(each.b),
        "difference": _format_number(each.difference, "+"),
        "interval": "-" if each.interval is None else "{:+.4f} to {:+.4f}".format(*each.interval),
        "significant": each.significant,
    }


def _show_row(
    each: ResultDifference, a: dict[str, Any], b: dict[str, Any], root: str | Path | None, min_score: float
) -> dict[str, Any]:
    a, b = drop_low_scores(a, min_score), drop_low_scores(b, min_score)
    predicted, true, ignore = load_result_masks(a, root)
    other = load_result_masks(b, root)[0]
    image = _load_image(a, max((masks.size for masks in (true, predicted, other)), key=lambda size: size[0] * size[1]))
    pictures = [_show_picture(image, "image")]
    for masks, caption, color in (
        (true, "truth", COLORS[0]),
        (predicted, f"a: IoU {each.a:.3f}", COLORS[1]),
        (other, f"b: IoU {each.b:.3f}", COLORS[2]),
    ):
        pictures.append(_show_picture(overlay(image, [masks.union()] if masks else [], colors=[color]), caption))
    if ignore:
        pictures.append(_show_picture(overlay(image, [ignore.union()]), "ignored"))
    return {
        "key": each.key,
        "question": get_question(a),
        "answer_a": str(a.get("response") or "")[:LONGEST_ANSWER],
        "answer_b": str(b.get("response") or "")[:LONGEST_ANSWER],
        "pictures": pictures,
    }


def _show_picture(image: Image.Image, caption: str) -> dict[str, Any]:
    small = image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return {"image": small, "caption": caption}


def _load_image(row: dict[str, Any], size: tuple[int, int]) -> Image.Image:
    """The result's first image; a grey one of size (h, w) where it is missing, damaged or of another size."""
    images = row.get("images") or []
    first = images[0].get("path") if images and isinstance(images[0], dict) else images[0] if images else None
    try:
        with Image.open(find_file(first)) as opened:
            image = to_rgb(opened)
    except Exception:  # PIL's readers raise nearly any exception on damaged files; the masks can be shown without it
        image = None
    if image is None or (image.height, image.width) != tuple(size):
        return Image.fromarray(np.full((*size, 3), GREY, np.uint8))
    return image


def _format_number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"
