"""A result file with all that users have: photographs turned by EXIF, odd names, failed, empty and cut answers."""

import json

import numpy as np
from hard_masks import SIZE, disc, pixel, ring, two_parts
from PIL import Image

from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import to_rle

TURNED_BY_90_DEGREES = 6
# Names that differ in what tools mix up: folders, suffixes, case, numbers behind separators, characters of addresses.
NAMES = ("day1/a.jpg", "day2/a.jpg", "day2/a.png", "day2/a_1.jpg", "Käse & Brot #1 100%.jpg", "turned.jpg", "anim.gif")


def write_images(folder):
    """Images of (h, w) = `SIZE`, `turned.jpg` only as viewers show it."""
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    for i, name in enumerate(NAMES):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.roll(pixels, i, axis=0))
        exif = Image.Exif()
        if name == "turned.jpg":
            image = image.transpose(Image.Transpose.ROTATE_90)
            exif[0x0112] = TURNED_BY_90_DEGREES
        if name.endswith(".png"):
            image.putalpha(128)
        image.save(path, **({"exif": exif.tobytes()} if name == "turned.jpg" else {}))
    return folder


def entry(mask, score=0.75, complete=True, code=1):
    return {**to_rle(mask), "codes": [code], "score": score, "complete": complete}


def result(image, question, masks, text=None, **further):
    """A line as `swift infer --plugin himtok` writes it."""
    spans = [codes_to_text(mask["codes"]) for mask in masks]
    answer = " and ".join(spans) if text is None else text.format(*spans)
    turns = [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": answer}]
    images = [{"bytes": None, "path": str(image)}]
    return {"response": answer, "messages": turns, "images": images, "masks": masks, **further}


def write_results(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def usual_results(folder):
    """Rows about all images, with every kind of mask."""
    left = disc(SIZE, (30, 20), 9)
    rows = [
        result(folder / NAMES[0], "Segment the round cheese.", [entry(ring(), 0.9)]),
        result(folder / NAMES[0], "Segment all shoes.", [entry(two_parts(), 0.5), entry(left, 0.4, code=2)]),
        result(folder / NAMES[1], "Segment the pixel.", [entry(pixel(), 0.3)]),
        result(folder / NAMES[2], "What is there?", [entry(ring()), entry(left, code=2)], "Käse: {0}\ncup: {1}"),
        result(folder / NAMES[3], "Segment the cup.", [entry(left, None)]),
        result(folder / NAMES[4], "Segment the whole image.", [entry(np.ones(SIZE, bool), 1.0)]),
        result(folder / NAMES[5], "Segment the cup.", [entry(two_parts())]),
        result(folder / NAMES[6], "Segment the cup.", [entry(left)]),
    ]
    return [{**row, "row": number, "dataset": "rows.jsonl"} for number, row in enumerate(rows, 1)]


def expected_masks():
    """Label -> all masks that `usual_results` has of it, by the names of their images without what a copy changes."""
    left = disc(SIZE, (30, 20), 9)
    return {
        "day1_a": {"round cheese": [ring()], "shoes": [two_parts(), left]},
        "day2_a": {"pixel": [pixel()]},
        "day2_a-2": {"Käse": [ring()], "cup": [left]},
        "a_1": {"cup": [left]},
        "Käse & Brot #1 100%": {"whole image": [np.ones(SIZE, bool)]},
        "turned": {"cup": [two_parts()]},
        "anim": {"cup": [left]},
    }
