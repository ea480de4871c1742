"""Images of a sample."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image


@contextmanager
def _naming_images(inputs) -> Iterator[None]:
    """Turn PIL's and the file system's errors about an image into one that names row and image."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{inputs.himtok_row}: images: {inputs.himtok_images!r:.200}: {error}") from error


def _image_name(image: Any) -> Any:
    path = image.get("path") if isinstance(image, dict) else image
    return path if isinstance(path, str) else type(image).__name__


def read_image_size(image: Any) -> tuple[int, int]:
    """(h, w) of an image as ms-swift's rows hold it: PIL image, path, bytes or URL."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    from swift.template.vision_utils import load_image

    if isinstance(image, str) and os.path.isfile(image):
        with Image.open(image) as opened:  # the header is enough
            return opened.height, opened.width
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    loaded = load_image(image)
    return loaded.height, loaded.width


def load_sample_image(image: Any) -> Image.Image:
    """An image as result rows hold it."""
    from swift.template.vision_utils import load_image

    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    return load_image(image)
