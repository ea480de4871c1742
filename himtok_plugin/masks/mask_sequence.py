"""`Masks`: all masks of one image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .bounding_box import mask_bbox
from .rle import check_size
from .sources import MaskSource, load_mask, to_rle
from .squares import RELEASED_SIDE, check_side, from_square, to_square

if TYPE_CHECKING:
    from torch import Tensor


class Masks(Sequence[np.ndarray]):
    """An immutable sequence of masks of one image: read-only bool arrays (h, w), all of the same size.

    Args:
        masks: sources of `load_mask`.
        size: (h, w) of the image; by default that of the first mask. Required if there are no masks.
    Raises:
        ValueError: `load_mask` rejects a source; the message begins with its index, `masks[2]: …`.
    """

    def __init__(self, masks: Iterable[MaskSource], size: tuple[int, int] | None = None) -> None:
        loaded: list[np.ndarray] = []
        size = None if size is None else check_size(size)
        for i, source in enumerate(masks):
            try:
                mask = load_mask(source, size).copy()
            except ValueError as error:
                raise ValueError(f"masks[{i}]: {error}") from error
            mask.setflags(write=False)
            size = size or (mask.shape[0], mask.shape[1])
            loaded.append(mask)
        if size is None:
            raise ValueError("masks is empty and size is None: expected a mask or the image's size (h, w)")
        self._size = size
        self._masks = tuple(loaded)

    @classmethod
    def load(
        cls, sources: Iterable[MaskSource], size: tuple[int, int] | None = None, root: str | Path | None = None
    ) -> Masks:
        """Like the constructor, but relative paths are resolved against `root`."""
        return cls((Path(root, s) if root is not None and isinstance(s, str | Path) else s for s in sources), size)

    @classmethod
    def from_squares(cls, probs: np.ndarray | Tensor, size: tuple[int, int], threshold: float = 0.5) -> Masks:
        """Masks of the image's size (h, w) from probabilities (n, s, s), converted by `from_square`."""
        return cls((from_square(prob, size, threshold) for prob in probs), size)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of every mask."""
        return self._size

    def __len__(self) -> int:
        return len(self._masks)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Masks: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Masks:
        return Masks(self._masks[index], self._size) if isinstance(index, slice) else self._masks[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self._size[0]}x{self._size[1]})"

    def squares(self, s: int = RELEASED_SIDE) -> np.ndarray:
        """float32 (n, s, s) in [0, 1], converted by `to_square`."""
        check_side("s", s)
        return np.stack([to_square(mask, s) for mask in self]) if self._masks else np.zeros((0, s, s), np.float32)

    def to_rle(self) -> list[dict[str, Any]]:
        """One compressed COCO RLE per mask."""
        return [to_rle(mask) for mask in self]

    def union(self) -> np.ndarray:
        """bool (h, w): foreground of at least one mask; all False if there are no masks."""
        return np.logical_or.reduce(self._masks) if self._masks else np.zeros(self._size, dtype=bool)

    def boxes(self) -> np.ndarray:
        """int64 (n, 4): `mask_bbox` of each mask."""
        return np.array([mask_bbox(mask) for mask in self], dtype=np.int64).reshape(-1, 4)
