"""Masks of four columns, as `swift infer` leaves them in a result file: their scores are worked out in the head."""

import numpy as np

from himtok_plugin.masks.sources import to_rle

SIZE = (4, 4)


def mask(*columns):
    """(4, 4) with whole columns in the foreground."""
    made = np.zeros(SIZE, dtype=bool)
    made[:, list(columns)] = True
    return made


def predicted(*columns):
    return {**to_rle(mask(*columns)), "codes": [1, 2], "score": 0.5, "complete": True}
