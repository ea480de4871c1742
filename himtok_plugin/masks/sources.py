"""Masks on disk and in memory: files, COCO RLE, polygons and arrays to bool (h, w); to and from the model's square.

Purpose: the only door through which masks enter and leave, so that every part agrees on what foreground is.
Contract: a mask is a bool array (h, w), True is foreground, all False is a legal (empty) mask. Whatever cannot be read
as one without guessing is a ValueError of one line that names field, value and what was expected.
This module does not know codes, text, models, torch or datasets.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from .rle import check_size, mask_to_rle, rle_to_mask
from himtok_plugin.validation import is_integer, abridged
from .polygons import polygons_to_mask

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SIZE = 256  # side of the released tokenizer's square
GREY_THRESHOLD = 128  # upper half of 0 … 255 is foreground
CHROMA_NOISE = 16  # JPEG turns equal channels into nearly equal ones
LABELS = 32  # all values but the highest below it are labels beside a void of 255 (VOC has 0 to 20), no edge's grey
LOSSY_FORMATS = ("JPEG", "MPO", "JPEG2000", "WEBP", "AVIF")  # a mask of quality 100 comes back as 0, 1, 255

Resize = Literal["bilinear", "nearest"]
_RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}

MaskSource = str | Path | Image.Image | np.ndarray | Mapping[str, Any]  # or a tensor; torch is not imported here


def load_mask(source: MaskSource | Tensor, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read one mask: bool (h, w).

    Binarisation of images and arrays:

    - bool: as it is; floats: in [0, 1], foreground from 0.5 on;
    - integers with at most two values, one of them 0, or one value only: nonzero is foreground;
    - other integers reaching 128 (anti-aliased, JPEG): foreground from 128 on; above 255: refused;
    - other integers below 128: refused, it is a map of several labels; so are those whose highest alone is 32 or more
      (0, 1, 255), but for JPEG and the like, where small values are noise;
    - palette images: by their colours if those are grey or black and one more, else by index, where more than two
      indices are refused;
    - colour images: grey ones (equal channels) as grey, those of black and one other colour by "not black", others
      refused; transparency lies on black, but if the colour is the same everywhere, alpha is the mask.

    Args:
        source: path, PIL image, array or tensor (h, w), COCO RLE {"size": [h, w], "counts": str | bytes | list of int},
            or {"polygons": [[x1, y1, x2, y2, …], …], "size": [h, w]} whose union is the mask.
        size: (h, w) of the image that the mask belongs to; the mask must have the same.
    Raises:
        ValueError: unreadable or ambiguous source, or another size than `size`.
    """
    source = _as_array(source)
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


def to_square(mask: MaskSource | Tensor, s: int = IMAGE_SIZE) -> np.ndarray:
    """The model's view of a mask: float32 (s, s) in [0, 1], bicubic stretch in 8 bits, not binarised.

    Args:
        mask: what `load_mask` takes. uint8 (h, w) and PIL mode L of more than two values, all of them 0 … 255, are kept
            grey; of two they are masks, whatever the values.
        s: side of the square.
    Raises:
        ValueError: as `load_mask`.
    """
    _check_side("s", s)
    foreground = load_mask(mask)
    mask = _as_array(np.asarray(mask) if isinstance(mask, Image.Image) and mask.mode == "L" else mask)
    grey = isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and len(np.unique(mask)) > 2
    pixels = mask if grey else foreground.astype(np.uint8) * 255
    square = Image.fromarray(np.ascontiguousarray(pixels)).resize((s, s), Image.Resampling.BICUBIC)
    return np.asarray(square, dtype=np.float32) / 255


def from_square(
    prob: np.ndarray | Tensor, size: tuple[int, int], threshold: float = 0.5, resample: Resize = "bilinear"
) -> np.ndarray:
    """Back to the image's own size: resize of the probabilities, then threshold; the inverse of `to_square`.

    Args:
        prob: float (s, s) in [0, 1]; an array, or a tensor as `MaskTokenizer.decode` gives, wherever it lies.
        size: (h, w) of the image.
        threshold: least probability of a foreground pixel, in [0, 1]; with `nearest` the one above which it begins, as
            in the paper's code.
        resample: `bilinear`, or `nearest` neighbour as in the paper's code.
    Returns:
        bool (h, w).
    """
    h, w = check_size(size)
    if resample not in _RESAMPLING:
        raise ValueError(f"resample is {resample!r}: expected one of {', '.join(_RESAMPLING)}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold!r}: expected a number in [0, 1]")
    prob = np.ascontiguousarray(_as_array(prob), dtype=np.float32)
    _check_array(prob, "prob")
    resized = np.asarray(Image.fromarray(prob).resize((w, h), _RESAMPLING[resample]))
    return resized > threshold if resample == "nearest" else resized >= threshold


def to_rle(mask: np.ndarray) -> dict[str, Any]:
    """Compressed COCO RLE of a mask (h, w), ready for JSON: {"size": [h, w], "counts": str}."""
    return mask_to_rle(load_mask(mask))


def mask_bbox(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) of the foreground, x2 and y2 exclusive; zeros for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


class Masks(Sequence):
    """An immutable sequence of masks of one image: read-only bool arrays (h, w), all of the same size.

    Args:
        masks: sources as `load_mask` takes them.
        size: (h, w) of the image; by default the first mask's. Needed where there is no mask.
    Raises:
        ValueError: as `load_mask`, with the index in front: `masks[2]: …`.
    """

    def __init__(self, masks: Iterable[MaskSource], size: tuple[int, int] | None = None) -> None:
        loaded: list[np.ndarray] = []
        self._size = None if size is None else check_size(size)
        for i, source in enumerate(masks):
            try:
                mask = load_mask(source, self._size).copy()
            except ValueError as error:
                raise ValueError(f"masks[{i}]: {error}") from error
            mask.setflags(write=False)
            self._size = self._size or mask.shape
            loaded.append(mask)
        if self._size is None:
            raise ValueError("masks is empty and size is None: expected a mask or the image's size (h, w)")
        self._masks = tuple(loaded)

    @classmethod
    def load(
        cls, sources: Iterable[MaskSource], size: tuple[int, int] | None = None, root: str | Path | None = None
    ) -> Masks:
        """Like the constructor, but relative paths are looked up under `root`."""
        return cls((Path(root, s) if root is not None and isinstance(s, str | Path) else s for s in sources), size)

    @classmethod
    def from_squares(cls, probs: np.ndarray | Tensor, size: tuple[int, int], threshold: float = 0.5) -> Masks:
        """Masks at the image's size (h, w) from probabilities (n, s, s), each by `from_square`."""
        return cls((from_square(prob, size, threshold) for prob in probs), size)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of every mask."""
        return self._size

    def __len__(self) -> int:
        return len(self._masks)

    def __getitem__(self, index: int | slice) -> np.ndarray | Masks:
        return Masks(self._masks[index], self._size) if isinstance(index, slice) else self._masks[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} of {self._size[0]}x{self._size[1]})"

    def squares(self, s: int = IMAGE_SIZE) -> np.ndarray:
        """float32 (n, s, s) in [0, 1], each by `to_square`."""
        _check_side("s", s)
        return np.stack([to_square(mask, s) for mask in self]) if self._masks else np.zeros((0, s, s), np.float32)

    def to_rle(self) -> list[dict[str, Any]]:
        """One compressed COCO RLE per mask."""
        return [to_rle(mask) for mask in self]

    def union(self) -> np.ndarray:
        """bool (h, w): foreground of any mask; all False if there is none."""
        return np.logical_or.reduce(self._masks) if self._masks else np.zeros(self._size, dtype=bool)

    def boxes(self) -> np.ndarray:
        """int64 (n, 4): `mask_bbox` of each mask."""
        return np.array([mask_bbox(mask) for mask in self], dtype=np.int64).reshape(-1, 4)


def _as_array(value: Any) -> Any:
    """A tensor, with or without gradient, as an array; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).numpy()  # NumPy has no bfloat16


def _from_file(path: str | Path) -> np.ndarray:
    try:
        with warnings.catch_warnings():  # the size is checked below, one way for every source
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                check_size((image.height, image.width))
                image.load()
    except Exception as error:  # PIL's readers raise nearly anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"mask {str(path)!r} cannot be read ({reason}): expected an image file") from error
    return _from_image(image, f"mask {str(path)!r}")


def _from_image(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "P" and "transparency" not in image.info:
        return _from_palette(image, name)
    noisy = image.format in LOSSY_FORMATS
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
    distinct = len(np.unique(colours, axis=0)) == len(used)  # else the palette says less than the indices
    grey = (colours == colours[:, :1]).all()
    with_black = len(used) == 2 and (colours == 0).all(axis=1).any()
    if len(used) > 1 and distinct and (grey or with_black):
        return _from_colours(table[indices], name)
    if len(used) > 2:
        raise ValueError(f"{name} has the palette indices {_values(used)}: expected one label beside 0 (a binary mask)")
    return _binarise(indices, name)


def _from_colours(colours: np.ndarray, name: str, noisy: bool = False) -> np.ndarray:
    """Colours (h, w, 3) in 0 … 255 -> bool (h, w)."""
    colours = colours.astype(np.int32)
    spread = colours.max(axis=2) - colours.min(axis=2)
    if not spread.any():
        return _binarise(colours[..., 0], name, noisy)
    packed = np.unique(colours @ (1 << 16, 1 << 8, 1))
    others = np.count_nonzero(packed)
    if others == 1:
        return colours.any(axis=2)
    if spread.max() > CHROMA_NOISE:
        raise ValueError(f"{name} has {others} colours besides black: expected grey, or black and one colour")
    return _binarise(colours.mean(axis=2).round().astype(np.uint8), name, noisy)


def _binarise(array: np.ndarray, name: str, noisy: bool = False) -> np.ndarray:
    _check_array(array, name)
    if array.dtype == bool:
        return array
    if array.dtype.kind == "f":
        return array >= 0.5
    values = np.unique(array)
    if values[0] < 0:
        raise ValueError(f"{name} has the values {_values(values)}: expected none below 0")
    if len(values) == 1 or (len(values) == 2 and values[0] == 0):
        return array > 0
    if values[-1] < GREY_THRESHOLD or values[-1] > 255 or (values[-2] < LABELS and not noisy):
        raise ValueError(
            f"{name} has the values {_values(values)}, as a map of several labels has: expected "
            "0 and one more (a binary mask), or grey of 0 to 255"
        )
    return array >= GREY_THRESHOLD


def _check_array(array: np.ndarray, name: str) -> None:
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


def _values(values: np.ndarray) -> str:
    """Sorted distinct values, shortened for an error message."""
    head = ", ".join(str(value) for value in values[:4].tolist())
    return head if len(values) <= 4 else f"{head}, … {values[-1]} ({len(values)} in all)"


def _check_side(name: str, s: int) -> None:
    if not is_integer(s) or s < 1:
        raise ValueError(f"{name} is {s!r}: expected a positive integer")
