"""What is where on a photograph, in words: a short text for each place, five tokens long.

A photograph is divided into g rows of g / 5 places. A place is described by the name of a class and the first and last
row and column, 0 to 9, of all its objects: "dog4938". These are five tokens of the language model, one per image token:
warm_up.py teaches image tokens to be like them, and questions.py writes them as text, for the language model to read.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from photographs import Region

PARTS = ("name", "top", "bottom", "left", "right")  # of a description
LENGTH = len(PARTS)
GRID = 10  # rows and columns that descriptions and answers name
NOTHING = "nothing"  # all words of a place without an object
MIN_CELLS = 0.15  # image tokens' areas that a class covers, to be described there


def find_place(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the first and last row and the first and last column, 0 to 9, that a bool (h, w) mask covers."""
    place = []
    for axis, size in enumerate(mask.shape):
        covered = np.flatnonzero(mask.any(axis=1 - axis))
        place += [GRID * int(covered[0]) // size, GRID * int(covered[-1]) // size]
    top, bottom, left, right = place
    return top, bottom, left, right


def describe(regions: Iterable[Region], names: dict[int, str], grid: int) -> list[str]:
    """Return g * g words for what a photograph shows, row by row.

    Of the classes in a place, the one is described that has the largest share of its area there, so that small ones are
    described too.

    Args:
        names: of the categories, by their ids.
        grid: g, image tokens in a row.
    """
    if grid % LENGTH:
        raise ValueError(f"image_size: got {grid} image tokens in a row, expected a multiple of {LENGTH}")
    masks: dict[int, np.ndarray] = {}
    for region in regions:
        masks[region.category_id] = region.mask | masks.get(region.category_id, False)
    places = grid, grid // LENGTH
    words = np.full((*places, LENGTH), NOTHING, object)
    most = np.zeros(places)
    for category, mask in masks.items():
        pixels = torch.from_numpy(mask.astype(np.float32))[None, None]
        cells = F.interpolate(pixels, places, mode="area")[0, 0].numpy() * LENGTH
        share = cells / cells.sum()
        chosen = (cells >= MIN_CELLS) & (share > most)
        most[chosen] = share[chosen]
        words[chosen] = [names[category], *map(str, find_place(mask))]
    return words.ravel().tolist()


def to_token_texts(words: list[str]) -> list[str]:
    """Write words as they are in a text: names after a space, digits without."""
    return [word if word.isdigit() else f" {word}" for word in words]
