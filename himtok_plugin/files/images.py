"""Image files as cameras and scanners write them: turned by EXIF, or with more than 8 bits per channel.

The one rule for all commands: an image is what viewers show, so one with an EXIF orientation is turned upright, and its
masks, boxes and polygons belong to the upright image. An image with more than 8 bits per channel is refused: ms-swift
would clip it to white.

Contract: a header is read without decoding pixels; `PIL.Image.open` is called by the caller or by `open_header`. For
mask images only the orientation counts, because a mask may have 16 bits.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageFile

UPRIGHT = 1
_Transpose = Image.Transpose
# EXIF orientation -> what makes the image upright; viewers treat all other numbers as upright.
_TRANSPOSE = {
    2: _Transpose.FLIP_LEFT_RIGHT,
    3: _Transpose.ROTATE_180,
    4: _Transpose.FLIP_TOP_BOTTOM,
    5: _Transpose.TRANSPOSE,
    6: _Transpose.ROTATE_270,
    7: _Transpose.TRANSVERSE,
    8: _Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)


@dataclass(frozen=True)
class ImageHeader:
    """What is known of an image without its pixels.

    Attributes:
        size: (h, w) of the upright image, the frame of all masks, boxes and results.
        orientation: of EXIF, 1 (upright) to 8.
        mode: PIL's mode of the stored pixels.
    """

    size: tuple[int, int]
    orientation: int
    mode: str

    @property
    def stored_size(self) -> tuple[int, int]:
        """(h, w) of the stored pixels."""
        return self.size[::-1] if self.orientation in _SWAPS_SIDES else self.size

    @property
    def frame_note(self) -> str:
        """For errors about a mask or box: which frame it belongs to; empty for an image that is stored upright."""
        if self.orientation == UPRIGHT:
            return ""
        return (
            f"; the image has the EXIF orientation {self.orientation}, and masks and boxes belong to the upright image "
            "that viewers show: turn them, too, or store the image upright (mogrify -auto-orient) and annotate that"
        )

    def check_depth(self, name: str) -> None:
        """Raise ValueError if the image has more than 8 bits per channel; the message begins with `name`."""
        if self.mode == "F" or self.mode.startswith("I"):
            raise ValueError(
                f"{name}: got an image of mode {self.mode}, more than 8 bits per channel, which ms-swift would clip to "
                "white, expected 8 bits: scale its values to 0 … 255 and save it again"
            )


def read_header(image: Image.Image) -> ImageHeader:
    """The header of an open image."""
    orientation = _read_orientation(image)
    size = image.height, image.width
    # PIL turns TIFF images itself: their size is that of the upright image before they are loaded, too.
    if orientation in _SWAPS_SIDES and image.format != "TIFF":
        size = size[::-1]
    return ImageHeader(size, orientation, image.mode)


def open_header(path: str | os.PathLike[str], whole: bool = False) -> ImageHeader:
    """The header of an image file; raises what `PIL.Image.open` raises.

    Args:
        whole: whether a truncated file is an error as well, see `check_whole`.
    """
    with Image.open(path) as image:
        header = read_header(image)
        if whole:
            check_whole(image)
        return header


def check_whole(image: ImageFile.ImageFile) -> None:
    """Check that an open image file is not truncated; raises what `load` raises.

    A file that ends as its format does is taken for whole. Only others are decoded, which is slow.
    """
    if not _has_end(image):
        image.load()


def _has_end(image: ImageFile.ImageFile) -> bool:
    if (file := image.fp) is None or image.format not in _ENDS:
        return False
    at = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - _END_BYTES, 0))
    tail = file.read(_END_BYTES)
    file.seek(at)
    return _ENDS[image.format] in tail


_END_BYTES = 64  # programs may append zeros or a line break
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}


def make_upright(image: Image.Image) -> Image.Image:
    """The image as viewers show it, without an EXIF orientation; the same object if it is stored upright."""
    orientation = _read_orientation(image)
    if orientation == UPRIGHT:
        return image
    if image.format == "TIFF":
        image.load()  # PIL turns it
        return image
    turned = image.transpose(_TRANSPOSE[orientation])
    # `transpose` keeps the EXIF data, by which a second call would turn the image again.
    for key in ("exif", "XML:com.adobe.xmp", "xmp", "Raw profile type exif"):
        turned.info.pop(key, None)
    return turned


def to_upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """The image as models and viewers see it: upright, in mode RGB.

    Raises:
        ValueError: more than 8 bits per channel; the message begins with `name`.
    """
    read_header(image).check_depth(name)
    return make_upright(image).convert("RGB")


def _read_orientation(image: Image.Image) -> int:
    try:
        # The base class's method, because PNG's own decodes the whole image first.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, UPRIGHT)
        return orientation if orientation in _TRANSPOSE else UPRIGHT
    except Exception:  # viewers ignore damaged EXIF data, too
        return UPRIGHT
