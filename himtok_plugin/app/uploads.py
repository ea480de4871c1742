"""Images that users give to the page: read from their files, within the server's limits.

Contract: `read_upload` looks at the header before it decodes pixels. What is no image, or too large, is a `ValueError`
whose text the page shows. The file's own bytes go to the server; the page draws a copy of the size of a screen.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from himtok_plugin.files.images import read_header, to_upright_rgb
from himtok_plugin.validation import abridged

from .settings import PageSettings

SCREEN_SIDE = 1280  # pixels of the longer side of what is drawn in the browser


@dataclass(frozen=True, eq=False)
class UploadedImage:
    """An image to ask about.

    Attributes:
        name: of its file.
        content: the file.
        size: (h, w) of the upright image, in pixels; all masks have it.
        screen: the upright image in RGB, at most `SCREEN_SIDE` pixels wide and high.
    """

    name: str
    content: bytes = field(repr=False)
    size: tuple[int, int]
    screen: Image.Image = field(repr=False)

    def open_full(self) -> Image.Image:
        """Return the upright image in RGB, at its full size."""
        return _decode(self.content, self.name, None)


def read_upload(path: str | Path, settings: PageSettings, name: str | None = None) -> UploadedImage:
    """Read an image file.

    Args:
        path: the file.
        settings: limits of the server.
        name: what the file is called, by default as in its path.
    Raises:
        ValueError: no image, more than 8 bits per channel, a damaged file, or one beyond the limits.
    """
    name = Path(path).name if name is None else name
    file_bytes = Path(path).stat().st_size
    if file_bytes > settings.max_file_bytes:
        raise ValueError(
            f"image: got {abridged(name)} of {file_bytes} bytes, expected at most {settings.max_file_bytes}: the "
            "server accepts no larger request. Save it as JPEG, or make it smaller"
        )
    content = Path(path).read_bytes()
    try:
        with Image.open(io.BytesIO(content)) as image:
            size = read_header(image).size
    except Image.DecompressionBombError as error:
        raise ValueError(_describe_pixels(name, "too many", settings)) from error
    except Exception as error:  # PIL's readers of damaged files raise errors of many kinds
        raise ValueError(
            f"image: got {abridged(name)}, which cannot be read as an image, expected a file such as PNG, JPEG or WebP"
        ) from error
    if size[0] * size[1] > settings.max_image_pixels:
        raise ValueError(_describe_pixels(name, f"{size[1]} x {size[0]}", settings))
    return UploadedImage(name, content, size, _decode(content, name, SCREEN_SIDE))


def fit_size(size: tuple[int, int], side: int = SCREEN_SIDE) -> tuple[int, int]:
    """Return (h, w) scaled down so that neither exceeds `side`, each at least 1."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _describe_pixels(name: str, got: str, settings: PageSettings) -> str:
    return (
        f"image: got {abridged(name)} with {got} pixels, expected at most {settings.max_image_pixels}, the server's "
        "limit: make it smaller"
    )


def _decode(content: bytes, name: str, side: int | None) -> Image.Image:
    try:
        with Image.open(io.BytesIO(content)) as image:
            if side is not None and image.mode == "RGB":
                image.draft("RGB", (2 * side, 2 * side))  # JPEG is decoded at a fraction of its size, much faster
            upright = to_upright_rgb(image, "image")
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f"image: got {abridged(name)}, which is damaged ({' '.join(str(error).split()):.100}), expected a whole "
            "image file"
        ) from error
    if side is not None and max(upright.size) > side:
        h, w = fit_size((upright.height, upright.width), side)
        upright = upright.resize((w, h), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return upright
