"""Areas of masks and of their overlaps, computed on run-length encodings without decoding them to pixels.

Evaluation reads hundreds of thousands of masks and needs their pixel counts only. `Runs` holds the foreground of a mask
as intervals of pixel numbers, counted column by column as in COCO. All counts are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from .rle import rle_runs


class Runs:
    """The foreground of a mask (h, w).

    Args:
        bounds: int64 (2n,), strictly increasing: begin and exclusive end of each interval in turn.
        size: (h, w).
    """

    def __init__(self, bounds: np.ndarray, size: tuple[int, int]) -> None:
        self.bounds = bounds
        self.size = size

    @classmethod
    def from_rle(cls, rle: Mapping[str, Any]) -> Runs:
        """From a COCO RLE {"size": [h, w], "counts": …}; raises ValueError as `rle_to_mask` does."""
        ends = np.cumsum(rle_runs(rle["counts"], rle["size"]))
        bounds = ends[: len(ends) // 2 * 2]  # without a last run of background
        if (bounds[1:] == bounds[:-1]).any():  # there are runs of length 0
            bounds, times = np.unique(bounds, return_counts=True)
            bounds = bounds[times % 2 == 1]
        return cls(bounds, (int(rle["size"][0]), int(rle["size"][1])))

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> Runs:
        """From a mask, bool (h, w)."""
        flat = np.zeros(mask.size + 2, bool)
        flat[1:-1] = mask.ravel(order="F")
        return cls(np.flatnonzero(flat[1:] != flat[:-1]), (mask.shape[0], mask.shape[1]))

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Runs:
        """A mask (h, w) without foreground."""
        return cls(np.zeros(0, np.int64), size)

    @classmethod
    def union(cls, masks: Sequence[Runs], size: tuple[int, int]) -> Runs:
        """Foreground of at least one of the masks, which all have the size (h, w)."""
        if len(masks) == 1:
            masks[0].check_size(size)
            return masks[0]
        return cls._covered_by(masks, 1, size)

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.bounds[1::2].sum() - self.bounds[::2].sum())

    def overlap(self, other: Runs) -> int:
        """Number of pixels that are foreground in both."""
        other.check_size(self.size)
        # A pixel is foreground of exactly one mask if an odd number of bounds, of both masks together, precede it.
        bounds = np.concatenate([self.bounds, other.bounds])
        bounds.sort(kind="stable")  # a merge of two sorted arrays
        in_one_only = int(bounds[1::2].sum() - bounds[::2].sum())
        return (self.area + other.area - in_one_only) // 2

    def and_(self, other: Runs) -> Runs:
        """Foreground of both masks."""
        return self._covered_by([self, other], 2, self.size)

    def without(self, other: Runs) -> Runs:
        """Foreground of this mask that is background in the other."""
        pixels = self.size[0] * self.size[1]
        bounds = np.concatenate([[0], other.bounds, [pixels]])
        rest = Runs(bounds[(bounds[0] == bounds[1]) * 2 :] if len(bounds) > 2 else bounds, other.size)
        if len(rest.bounds) and rest.bounds[-2] == rest.bounds[-1]:
            rest = Runs(rest.bounds[:-2], other.size)
        return self.and_(rest)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ValueError if the mask has another size than (h, w)."""
        if tuple(self.size) != tuple(size):
            raise ValueError(f"mask has size (h, w) = {tuple(self.size)}: expected {tuple(size)}")

    @classmethod
    def _covered_by(cls, masks: Sequence[Runs], num_masks: int, size: tuple[int, int]) -> Runs:
        """Pixels that are foreground in at least `num_masks` of the masks."""
        for mask in masks:
            mask.check_size(size)
        if not masks:
            return cls.empty(size)
        bounds = np.concatenate([mask.bounds for mask in masks])
        steps = np.ones(len(bounds), np.int64)
        steps[1::2] = -1  # every mask has an even number of bounds
        places, which = np.unique(bounds, return_inverse=True)
        covering = np.cumsum(np.bincount(which, steps, minlength=len(places)))
        inside = np.concatenate([[False], covering >= num_masks])
        return cls(places[inside[1:] != inside[:-1]], size)
