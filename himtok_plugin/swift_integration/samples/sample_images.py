"""Images of a sample in any of ms-swift's forms: path, URL, bytes or PIL image.

Contract: every image is read as `files/images.py` says: turned upright, and refused with more than 8 bits per channel.
ms-swift itself ignores EXIF orientations, so templates get an image that is stored turned as a loaded one.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from swift.utils import get_logger

from himtok_plugin.data.samples import find_file
from himtok_plugin.files.images import UPRIGHT, ImageHeader, open_header, read_header, to_upright_rgb

logger = get_logger()
TURNED = (
    "{} is turned upright by its EXIF orientation, as all such images are: masks and boxes belong to the upright image"
)


@contextmanager
def name_images_in_errors(inputs: Any) -> Iterator[None]:
    """Convert errors of PIL and the file system into a `ValueError` that names the sample and its images.

    Args:
        inputs: ms-swift's template inputs with the attributes `himtok_row` and `himtok_images`.
    """
    try:
        yield
    except OSError as error:
        raise ValueError(f"{inputs.himtok_row}: images: {inputs.himtok_images!r:.200}: {error}") from error


def get_image_name(image: Any) -> str:
    """Return an image's path or URL, or the name of its type."""
    path = image.get("path") if isinstance(image, dict) else image
    return path if isinstance(path, str) else type(image).__name__


def load_upright_images(images: list[Any], row: str = "row") -> tuple[list[Any], ImageHeader | None]:
    """Load the images that ms-swift would show turned, and those that are not files of this machine.

    Args:
        images: of a sample.
        row: the sample's name in errors.
    Returns:
        For each image its path if it is a file that is stored upright, else the upright PIL image in RGB; and the
        header of the first image, None without images.
    Raises:
        ValueError: an image has more than 8 bits per channel.
        OSError: an image cannot be read.
    """
    loaded, first = [], None
    for i, image in enumerate(images):
        name = f"{row}: images[{i}] {get_image_name(image)!r:.200}"
        opened, header = _open(image)
        header.check_depth(name)
        first = header if i == 0 else first
        if header.orientation != UPRIGHT:
            logger.info_once(TURNED.format(name), hash_id=TURNED)
        keeps_path = opened is None and header.orientation == UPRIGHT
        loaded.append(image if keeps_path else to_upright_rgb(opened or _open_file(image), name))
    return loaded, first


def read_image_size(image: Any) -> tuple[int, int]:
    """Return the size (h, w) of an image, as viewers show it."""
    return _open(image)[1].size


def load_sample_image(image: Any) -> Image.Image:
    """Load an image of a sample or of a result, upright and in RGB.

    Raises:
        ValueError: more than 8 bits per channel.
    """
    return to_upright_rgb(_open(image)[0] or _open_file(image), f"image {get_image_name(image)!r:.200}")


def _open(image: Any) -> tuple[Image.Image | None, ImageHeader]:
    """Open an image; of a file of this machine only the header is read, and None returned in place of the image."""
    from swift.template.vision_utils import load_file

    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str) and os.path.isfile(find_file(image)):
        return None, open_header(find_file(image))
    if not isinstance(image, Image.Image):
        # ms-swift reads any other text as base64, whose alphabet has no dot.
        if isinstance(image, str) and "." in image and not image.strip().startswith(("http", "data:")):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), image)
        image = Image.open(load_file(image))
    return image, read_header(image)


def _open_file(image: Any) -> Image.Image:
    path = image["path"] if isinstance(image, dict) else image
    with open(find_file(path), "rb") as file:
        return Image.open(io.BytesIO(file.read()))
