"""Areas of masks and of their overlaps from run-length encodings, without making pixels of them.

Purpose: scoring reads hundreds of thousands of masks, of whose pixels nothing but counts is wanted.
Contract: `Runs` is the foreground of one mask as intervals of pixel numbers, counted column by column as COCO does. All
numbers are exact. Masks of different sizes are an error. Does not know files, text and metrics.
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
        bounds: int64 (2n,): begin and end (exclusive) of each interval in turn, strictly increasing.
        size: (h, w).
    """

    def __init__(self, bounds: np.ndarray, size: tuple[int, int]) -> None:
        self.bounds = bounds
        self.size = size

    @classmethod
    def from_rle(cls, rle: Mapping[str, Any]) -> Runs:
        """From a COCO RLE {"size": [h, w], "counts": …}; ValueError as `coco_masks.rle_to_mask`."""
        ends = np.cumsum(rle_runs(rle["counts"], rle["size"]))
        bounds = ends[: len(ends) // 2 * 2]  # a last run of background bounds nothing
        if (bounds[1:] == bounds[:-1]).any():  # around runs of no pixel
            bounds, times = np.unique(bounds, return_counts=True)
            bounds = bounds[times % 2 == 1]
        return cls(bounds, (int(rle["size"][0]), int(rle["size"][1])))

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> Runs:
        """From bool (h, w)."""
        flat = np.zeros(mask.size + 2, bool)
        flat[1:-1] = mask.ravel(order="F")
        return cls(np.flatnonzero(flat[1:] != flat[:-1]), mask.shape)

    @classmethod
    def empty(cls, size: tuple[int, int]) -> Runs:
        return cls(np.zeros(0, np.int64), size)

    @classmethod
    def union(cls, masks: Sequence[Runs], size: tuple[int, int]) -> Runs:
        """Foreground of any of the masks, all of the size (h, w)."""
        if len(masks) == 1:
            masks[0].check_size(size)
            return masks[0]
        return cls._where(masks, 1, size)

    @cached_property
    def area(self) -> int:
        """Number of pixels."""
        return int(self.bounds[1::2].sum() - self.bounds[::2].sum())

    def overlap(self, other: Runs) -> int:
        """Number of pixels that are foreground in both."""
        other.check_size(self.size)
        # A pixel is foreground of one mask alone where it has an odd number of both masks' bounds before it.
        bounds = np.concatenate([self.bounds, other.bounds])
        bounds.sort(kind="stable")  # merges what is sorted already
        alone = int(bounds[1::2].sum() - bounds[::2].sum())
        return (self.area + other.area - alone) // 2

    def and_(self, other: Runs) -> Runs:
        """Foreground of both masks."""
        return self._where([self, other], 2, self.size)

    def without(self, other: Runs) -> Runs:
        """Foreground of this mask that is background in the other."""
        pixels = self.size[0] * self.size[1]
        bounds = np.concatenate([[0], other.bounds, [pixels]])
        rest = Runs(bounds[(bounds[0] == bounds[1]) * 2 :] if len(bounds) > 2 else bounds, other.size)
        if len(rest.bounds) and rest.bounds[-2] == rest.bounds[-1]:
            rest = Runs(rest.bounds[:-2], other.size)
        return self.and_(rest)

    def check_size(self, size: tuple[int, int]) -> None:
        if tuple(self.size) != tuple(size):
            raise ValueError(f"mask has size (h, w) = {tuple(self.size)}: expected {tuple(size)}")

    @classmethod
    def _where(cls, masks: Sequence[Runs], least: int, size: tuple[int, int]) -> Runs:
        """Pixels that are foreground in at least so many of the masks."""
        for mask in masks:
            mask.check_size(size)
        if not masks:
            return cls.empty(size)
        bounds = np.concatenate([mask.bounds for mask in masks])
        steps = np.ones(len(bounds), np.int64)
        steps[1::2] = -1  # every mask has an even number of bounds
        places, which = np.unique(bounds, return_inverse=True)
        depth = np.cumsum(np.bincount(which, steps, minlength=len(places)))
        inside = np.concatenate([[False], depth >= least])
        return cls(places[inside[1:] != inside[:-1]], size)
