"""Masks to and from the mask tokenizer's square input.

Contract: `to_square` and `from_square` are inverses up to the resolution of the square.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from himtok_plugin.files.images import make_upright
from himtok_plugin.validation import is_integer

from .rle import check_size
from .sources import MaskSource, as_array, check_mask_array, load_mask

if TYPE_CHECKING:
    from torch import Tensor

RELEASED_SIDE = 256  # pixels, of the released mask tokenizer

Resize = Literal["bilinear", "nearest"]
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}


def to_square(mask: MaskSource | Tensor, s: int = RELEASED_SIDE) -> np.ndarray:
    """The mask tokenizer's input for a mask: float32 (s, s) in [0, 1], stretched bicubically in 8 bits, not binarised.

    Args:
        mask: any source of `load_mask`. Grey levels are kept in uint8 arrays (h, w) and PIL images of mode L that have
            more than two values.
        s: side of the square in pixels.
    Raises:
        ValueError: `load_mask` rejects the source, or `s` is not a positive integer.
    """
    check_side("s", s)
    mask = make_upright(mask) if isinstance(mask, Image.Image) else mask
    foreground = load_mask(mask)
    mask = as_array(np.asarray(mask) if isinstance(mask, Image.Image) and mask.mode == "L" else mask)
    grey = isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and len(np.unique(mask)) > 2
    pixels = mask if grey else foreground.astype(np.uint8) * 255
    square = Image.fromarray(np.ascontiguousarray(pixels)).resize((s, s), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32) / 255


def from_square(
    prob: np.ndarray | Tensor, size: tuple[int, int], threshold: float = 0.5, resample: Resize = "bilinear"
) -> np.ndarray:
    """Resize probabilities to the image's size and threshold them; the inverse of `to_square`.

    Args:
        prob: float (s, s) in [0, 1]; an array, or a tensor on any device as `MaskTokenizer.decode` returns it.
        size: (h, w) of the image.
        threshold: minimum probability of foreground pixels, in [0, 1]; with `nearest`, foreground is strictly above it,
            as in the authors' code.
        resample: `bilinear`, or `nearest` as in the authors' code.
    Returns:
        bool (h, w).
    Raises:
        ValueError: `prob` is not (s, s) in [0, 1], or another argument is out of range.
    """
    h, w = check_size(size)
    if resample not in _RESAMPLING:
        raise ValueError(f"resample is {resample!r}: expected one of {', '.join(_RESAMPLING)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold!r}: expected a number in [0, 1]")
    prob = np.ascontiguousarray(as_array(prob), dtype=np.float32)
    check_mask_array(prob, "prob")
    resized = np.asarray(Image.fromarray(prob).resize((w, h), _RESAMPLING[resample]))
    return resized > threshold if resample == "nearest" else resized >= threshold


def check_side(name: str, s: int) -> None:
    """Raise ValueError unless `s` is a positive integer."""
    if not is_integer(s) or s < 1:
        raise ValueError(f"{name} is {s!r}: expected a positive integer")
