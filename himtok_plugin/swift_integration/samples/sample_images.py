"""Images of a sample in any of ms-swift's forms: path, URL, bytes or PIL image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image


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


def read_image_size(image: Any) -> tuple[int, int]:
    """Return the size (h, w) of an image."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    from swift.template.vision_utils import load_image

    if isinstance(image, str) and os.path.isfile(image):
        with Image.open(image) as opened:  # reads the header only
            return opened.height, opened.width
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    loaded = load_image(image)
    return loaded.height, loaded.width


def load_sample_image(image: Any) -> Image.Image:
    """Load an image of a sample or of a result."""
    from swift.template.vision_utils import load_image

    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    return load_image(image)
