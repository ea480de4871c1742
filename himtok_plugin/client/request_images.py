"""Images as a server takes them: data URLs of whole files, whose orientation and pixels the server reads itself."""

from __future__ import annotations

import base64
import io
import os

from PIL import Image

from himtok_plugin.validation import abridged

ImageSource = str | os.PathLike | bytes | Image.Image
_URL_SCHEMES = ("http://", "https://", "data:")


def to_image_url(image: ImageSource) -> str:
    """Convert an image to the URL that a request has.

    Args:
        image: path, content of a file, PIL image (sent as PNG), or a URL, which the server downloads itself.
    Returns:
        The URL itself, or a data URL.
    Raises:
        ValueError: the file cannot be read, or is no image.
    """
    if isinstance(image, str) and image.lower().startswith(_URL_SCHEMES):
        return image
    if isinstance(image, Image.Image):
        content = io.BytesIO()
        image.save(content, "PNG", exif=image.getexif())
        return _to_data_url(content.getvalue(), "PNG")
    if not isinstance(image, bytes):
        try:
            with open(image, "rb") as file:
                image = file.read()
        except OSError as error:
            raise ValueError(f"image: got {os.fspath(image)!r}, which cannot be read ({error.strerror})") from error
    try:
        with Image.open(io.BytesIO(image)) as opened:
            kind = opened.format or "PNG"
    except Exception as error:  # PIL's readers raise many types
        raise ValueError(f"image: got {abridged(image)}, expected the content of an image file") from error
    return _to_data_url(image, kind)


def _to_data_url(content: bytes, kind: str) -> str:
    media_type = Image.MIME.get(kind, f"image/{kind.lower()}")
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
