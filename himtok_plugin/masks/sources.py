"""Masks from any source (files, COCO RLE, polygons, images, arrays, tensors) as bool (h, w).

Contract: True is foreground, all False is a legal (empty) mask. This is the one place that decides which values are
foreground. A source that cannot be read without guessing is a ValueError of one line: field, value, what was expected.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from himtok_plugin.files.images import make_upright
from himtok_plugin.validation import abridged

from .polygons import polygons_to_mask
from .rle import check_size, mask_to_rle, rle_to_mask

if TYPE_CHECKING:
    from torch import Tensor

GREY_THRESHOLD = 128  # the upper half of 0 … 255 is foreground
CHROMA_NOISE = 16  # JPEG turns equal channels into nearly equal ones
# If all values but the highest are below this, they are labels beside a void label of 255 (VOC has labels 0 to 20).
LABELS = 32
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # at quality 100, a mask is stored as 0, 1, 255

MaskSource = str | Path | Image.Image | np.ndarray | Mapping[str, Any]  # or a tensor; torch is not imported here


def load_mask(source: MaskSource | Tensor, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read one mask: bool (h, w).

    How images and arrays are binarised:

    - Bool arrays are taken as they are. Floats must be in [0, 1]; foreground is 0.5 or more.
    - Integers with a single value, or with two values of which one is 0: foreground is nonzero.
    - Other integers that reach 128, at most 255 (anti-aliased or JPEG masks): foreground is 128 or more.
    - Other integers are rejected as label maps. So are those whose highest value is the only one of 32 or more
      (0, 1, 255), except in JPEG and other lossy formats, where small values are noise.
    - Palette images are read by their colours if these are grey, or black and one other colour. Otherwise they are read
      by their indices, of which there may be two.
    - Colour images with equal channels are read as grey. With black and one other colour, foreground is the other
      colour. All others are rejected. Transparent pixels count as black; if the colour is the same everywhere, the
      alpha channel is the mask.

    Image files and PIL images with an EXIF orientation are turned upright, as photos are.

    Args:
        source: path, PIL image, array or tensor (h, w), COCO RLE {"size": [h, w], "counts": str | bytes | list of int},
            or {"polygons": [[x1, y1, x2, y2, …], …], "size": [h, w]}, whose union is the mask.
        size: (h, w) of the image that the mask belongs to, which the mask must have too.
    Raises:
        ValueError: the source is unreadable or ambiguous, or its size is not `size`.
    """
    source = as_array(source)
    if isinstance(source, Mapping):
        mask = _from_mapping(source)
    elif isinstance(source, np.ndarray):
        mask = _binarise(source, "mask array")
    elif isinstance(source, Image.Image):
        mask = _from_image(source, "mask image")
    elif isinstance(source, str | Path):
        mask = _from_file(source)
    else:
        raise ValueError(f"mask is {abridged(source)}: expected a path, PIL image, array, RLE or polygons with a size")
    if size is not None and mask.shape != tuple(size):
        where = f" {str(source)!r}" if isinstance(source, str | Path) else ""
        raise ValueError(f"mask{where} has size (h, w) = {mask.shape}: expected {tuple(size)}, the size of its image")
    return mask


def to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Compressed COCO RLE of a mask (h, w), ready for JSON: {"size": [h, w], "counts": str}."""
    return mask_to_rle(load_mask(mask))


def as_array(value: Any) -> Any:
    """Convert a tensor, with or without gradient, to an array; return anything else unchanged."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()  # float(): NumPy has no bfloat16


def _from_file(path: str | Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():  # check_size replaces PIL's limit, for all sources alike
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                check_size((image.height, image.width))
                image.load()
    except Exception as error:  # PIL's readers raise many kinds of errors for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"mask {str(path)!r} cannot be read ({reason}): expected an image file") from error
    return _from_image(image, f"mask {str(path)!r}")


def _from_image(image: Image.Image, name: str) -> np.ndarray:
    noisy = image.format in LOSSY_FORMATS
    image = make_upright(image)
    if image.mode == "P" and "transparency" not in image.info:
        return _from_palette(image, name)
    if image.mode in ("1", "L", "F") or image.mode.startswith("I"):
        return _binarise(np.asarray(image), name, noisy)
    try:
        pixels = np.asarray(image.convert("RGBA"), dtype=np.uint16)
    except (ValueError, OSError) as error:
        raise ValueError(f"{name} has mode {image.mode}: expected a grey, palette or colour image") from error
    colours, alpha = pixels[..., :3], pixels[..., 3]
    if alpha.min() != alpha.max() and (colours == colours[0, 0]).all():
        return _binarise(alpha, name)
    return _from_colours((colours * alpha[..., None] + 127) // 255, name, noisy)


def _from_palette(image: Image.Image, name: str) -> np.ndarray:
    indices = np.asarray(image)
    used = np.unique(indices)
    table = np.zeros((256, 3), dtype=np.uint8)
    palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
    table[: len(palette)] = palette
    colours = table[used]
    distinct = len(np.unique(colours, axis=0)) == len(used)  # else indices are lost in the colours
    grey = (colours == colours[:, :1]).all()
    with_black = len(used) == 2 and (colours == 0).all(axis=1).any()
    if len(used) > 1 and distinct and (grey or with_black):
        return _from_colours(table[indices], name)
    if len(used) > 2:
        raise ValueError(
            f"{name} has the palette indices {_listed(used)}: expected 0 and one other index (a binary mask)"
        )
    return _binarise(indices, name)


def _from_colours(colours: np.ndarray, name: str, noisy: bool = False) -> np.ndarray:
    """Binarise colours, integers (h, w, 3) in 0 … 255."""
    colours = colours.astype(np.int32)
    spread = colours.max(axis=2) - colours.min(axis=2)
    if not spread.any():
        return _binarise(colours[..., 0], name, noisy)
    packed = np.unique(colours @ (1 << 16, 1 << 8, 1))
    others = np.count_nonzero(packed)
    if others == 1:
        return np.any(colours, axis=2)
    if spread.max() > CHROMA_NOISE:
        raise ValueError(f"{name} has {others} colours besides black: expected grey, or black and one colour")
    return _binarise(colours.mean(axis=2).round().astype(np.uint8), name, noisy)


def _binarise(array: np.ndarray, name: str, noisy: bool = False) -> np.ndarray:
    check_mask_array(array, name)
    if array.dtype == bool:
        return array
    if array.dtype.kind == "f":
        return array >= 0.5
    values = np.unique(array)
    if values[0] < 0:
        raise ValueError(f"{name} has the values {_listed(values)}: expected none below 0")
    if len(values) == 1 or (len(values) == 2 and values[0] == 0):
        return array > 0
    if values[-1] < GREY_THRESHOLD or values[-1] > 255 or (values[-2] < LABELS and not noisy):
        raise ValueError(
            f"{name} has the values {_listed(values)}, which look like a map of several labels: expected 0 and one "
            "other value (a binary mask), or grey values of 0 to 255"
        )
    return array >= GREY_THRESHOLD


def check_mask_array(array: np.ndarray, name: str) -> None:
    """Raise ValueError unless the array is (h, w) of bool, integers, or floats in [0, 1]."""
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} has shape {array.shape}: expected (h, w)")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {array.dtype}: expected bool, integer or float")
    if array.dtype.kind == "f" and not (array.min() >= 0 and array.max() <= 1):  # false for NaN as well
        raise ValueError(f"{name} has values from {array.min()} to {array.max()}: expected floats within [0, 1]")


def _from_mapping(source: Mapping[str, Any]) -> np.ndarray:
    if ("counts" in source) == ("polygons" in source) or "size" not in source:
        raise ValueError(f"mask has the keys {abridged(list(source))}: expected size, and either counts or polygons")
    if "counts" in source:
        return rle_to_mask(source["counts"], source["size"])
    return polygons_to_mask(source["polygons"], source["size"])


def _listed(values: np.ndarray) -> str:
    """Format sorted distinct values for an error message: all, or the first four and the last."""
    head = ", ".join(str(value) for value in values[:4].tolist())
    return head if len(values) <= 4 else f"{head}, … {values[-1]} ({len(values)} values)"
