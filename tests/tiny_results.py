"""Results as `swift infer` writes them, with masks of whole columns, so that scores can be worked out by hand."""

import json

import numpy as np

from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import to_rle

SIZE = (4, 4)


def column_mask(*columns, width=4):
    """bool (4, width) with these columns in the foreground."""
    mask = np.zeros((4, width), dtype=bool)
    mask[:, list(columns)] = True
    return mask


def wide_mask(*columns):
    """The same in 64 x 64 pixels, the side of squares in sums of training masks, so that nothing is resized."""
    return np.kron(column_mask(*columns), np.ones((16, 16), dtype=bool)).astype(bool)


def predicted_mask(*columns):
    """An entry of a result's `masks`."""
    return {**to_rle(column_mask(*columns)), "codes": [1, 2], "score": 0.5, "complete": True}


RESULTS = [  # wrong in part, missing, wrongly found
    {
        "masks": [predicted_mask(0, 1)],
        "target_masks": [to_rle(column_mask(1, 2))],
        "ignore": [to_rle(column_mask(0))],
        "category": "a",
    },
    {"masks": [], "target_masks": [to_rle(column_mask(3))], "category": "a"},
    {"masks": [predicted_mask(3)], "target_masks": [], "category": "b"},
]


def write_results(path, *results):
    """Write dictionaries, or lines as they are, to a JSONL file and return its path."""
    lines = (result if isinstance(result, str) else json.dumps(result) for result in results)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def write_scored_results(folder, count=60, **fields):
    """`out.jsonl` with one mask per row, whose IoU is 2 * score - 1; `fields` are added to every mask."""
    rng = np.random.default_rng(0)
    path = folder / "out.jsonl"
    with open(path, "w") as file:
        for _ in range(count):
            width = int(rng.integers(2, 20))
            entry = {**to_rle(column_mask(*range(width), width=20)), "codes": [1], "complete": True}
            entry.update(score=0.5 + width / 40, **fields)
            row = {
                "response": codes_to_text([1]),
                "masks": [entry],
                "target_masks": [to_rle(column_mask(*range(20), width=20))],
            }
            file.write(json.dumps(row) + "\n")
    return path


def first_pixels(count):
    """RLE of a 10 x 10 mask with this number of pixels."""
    mask = np.zeros((10, 10), bool)
    mask.T.flat[:count] = True
    return to_rle(mask)


def write_scored_run(path, ious, **columns):
    """A result file with these IoUs of 100 true pixels each; two results per image."""
    rows = []
    for i, iou in enumerate(ious):
        row = {"row": i + 1, "images": [f"{i // 2}.png"], "messages": [{"role": "user", "content": f"<image>Row {i}?"}]}
        found = [first_pixels(round(100 * iou))] if iou else []
        rows.append({**row, "response": "It is <b>", "masks": found, "target_masks": [first_pixels(100)], **columns})
    return write_results(path, *rows)


def write_two_runs(folder):
    """Two runs on 20 images, most results of the second better: (path, path, IoUs, IoUs)."""
    rng = np.random.default_rng(0)
    base = rng.integers(20, 80, 40) / 100
    better = np.clip(base + rng.integers(0, 12, 40) / 100, 0, 1)
    better[3] = 0.0  # one result is worse
    return write_scored_run(folder / "a.jsonl", base), write_scored_run(folder / "b.jsonl", better), base, better
