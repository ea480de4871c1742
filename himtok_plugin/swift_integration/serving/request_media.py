"""Images, videos and audios of a request: read once, checked, and passed on as the bytes that were checked.

Contract: `download_media` downloads, and `load_media` decodes base64; neither reads a pixel of an image, whose size is
in its header, so that the limits hold before memory is allocated. Files of the server are read only in the folders that
ms-swift's environment variable SWIFT_MEDIA_ALLOWED_DIRS lists, separated by commas.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from PIL import Image, UnidentifiedImageError

from himtok_plugin.files.images import read_header as read_image_header
from himtok_plugin.swift_integration.options.arguments import HimTokArguments
from himtok_plugin.validation import abridged

from .chat_requests import shorten_reason
from .downloads import ByteBudget, download

# Of pictures. Others that PIL reads can start programs (EPS) or hold other files' names.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_DATA_URL = re.compile(r"data:([^,]*),", re.IGNORECASE)
_BASE64_LETTERS = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_SHORTEST_IMAGE = 200  # letters of base64, below which a text is rather a path
MEDIA_FOLDER = "himtok-media-"  # beginning of the names of temporary folders
_SUFFIX = {"video": ".mp4", "audio": ".wav"}


class LoadedMedia:
    """The media of a request.

    Attributes:
        images: bytes of each image file.
        videos, audios: path of a temporary file, or a list of such paths for the frames of a video.
        sizes: (h, w) of each image, in the frame that results are in.
    """

    def __init__(self) -> None:
        self.images: list[bytes] = []
        self.videos: list[Any] = []
        self.audios: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self._folder: tempfile.TemporaryDirectory | None = None

    def write_file(self, content: bytes, suffix: str) -> str:
        """Write a temporary file, which `close` removes, and return its path."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix=MEDIA_FOLDER, ignore_cleanup_errors=True)
        with tempfile.NamedTemporaryFile(dir=self._folder.name, suffix=suffix, delete=False) as file:
            file.write(content)
        return file.name

    def close(self) -> None:
        """Remove the temporary files."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


class MediaLimits:
    """What the requests of one body may still load: media, pixels, and bytes of downloads.

    Args:
        settings: the server's options.
    """

    def __init__(self, settings: HimTokArguments):
        self.settings = settings
        self.budget = ByteBudget(settings.max_request_bytes)
        self._media = self._pixels = 0

    def add_media(self, count: int) -> None:
        """Count further media; raises ValueError if there are too many."""
        self._media += count
        most = self.settings.max_request_images
        if self._media > most:
            raise ValueError(f"images: got {self._media}, expected at most {most} images, videos and audios together")

    def add_pixels(self, size: tuple[int, int], name: str) -> None:
        """Count the pixels of an image of size (h, w); raises ValueError if there are too many."""
        h, w = size
        if h * w > self.settings.max_image_pixels:
            raise ValueError(
                f"{name}: got {h} x {w} = {h * w} pixels, expected at most {self.settings.max_image_pixels}"
            )
        self._pixels += h * w
        most = self.settings.max_request_pixels
        if self._pixels > most:
            raise ValueError(f"images: got {self._pixels} pixels, expected at most {most} of all images together")


async def download_media(
    sources: Mapping[str, list[Any]], limits: MediaLimits, threads: Executor
) -> dict[str, bytes | BaseException]:
    """Download every URL of a request once, all at a time.

    Args:
        sources: URL, base64 or path of each medium, by kind.
        limits: of the request.
        threads: for downloads only, because they wait for other machines.
    Returns:
        URL -> its content, or the error.
    """
    limits.add_media(sum(len(_flatten(each)) for each in sources.values()))
    allow_private = limits.settings.allow_private_urls or _is_set("SWIFT_ALLOW_INTERNAL_URL")
    urls = list(dict.fromkeys(each for kind in sources.values() for each in _flatten(kind) if _is_url(each)))
    run = asyncio.get_running_loop().run_in_executor
    contents = await asyncio.gather(
        *(run(threads, download, url, limits.budget, allow_private) for url in urls), return_exceptions=True
    )
    return dict(zip(urls, contents, strict=True))


def load_media(
    sources: Mapping[str, list[Any]],
    limits: MediaLimits,
    downloaded: Mapping[str, bytes | BaseException],
    loaded: LoadedMedia,
) -> None:
    """Read the media of a request.

    Args:
        sources: URL, base64 or path of each medium, by kind.
        limits: of the request.
        downloaded: what `download_media` has returned for them.
        loaded: where they are added, also before an error.
    Raises:
        ValueError: a medium cannot be read or exceeds a limit.
    """

    def read(source: str) -> bytes:
        content = downloaded.get(source)
        if isinstance(content, BaseException):
            raise content
        return read_source(source) if content is None else content

    for i, source in enumerate(sources.get("image", [])):
        content, size = _load_image(source, f"images[{i}]", read, limits)
        loaded.images.append(content)
        loaded.sizes.append(size)
    for i, source in enumerate(sources.get("video", [])):
        if isinstance(source, list):
            frames = [_load_image(each, f"videos[{i}]", read, limits)[0] for each in source]
            loaded.videos.append([loaded.write_file(frame, "") for frame in frames])  # some templates take no bytes
        else:
            loaded.videos.append(_load_file(source, f"videos[{i}]", "video", read, loaded))
    for i, source in enumerate(sources.get("audio", [])):
        loaded.audios.append(_load_file(source, f"audios[{i}]", "audio", read, loaded))


def read_source(source: str) -> bytes:
    """Read a data URL, base64 in any of its forms, or a file in a folder that is allowed.

    Raises:
        ValueError: the source is none of these, or empty.
    """
    match = _DATA_URL.match(source)
    if match:
        data = source[match.end() :]
        is_base64 = "base64" in (word.strip().lower() for word in match[1].split(";"))
        content = _decode_base64(unquote_to_bytes(data).decode("latin-1")) if is_base64 else unquote_to_bytes(data)
        if not content:
            raise ValueError("got a data URL that is empty or no base64, expected base64 of a file")
        return content
    file = _find_allowed_file(source)
    if file is not None:
        return file.read_bytes()
    content = _decode_base64(source) if "://" not in source[:20] else None
    if not content:
        raise ValueError(_describe_unread(source))
    return content


def read_header(content: bytes) -> tuple[int, int]:
    """Return the size (h, w) of an image file from its header, in the frame that results are in.

    Raises:
        ValueError: the content is no image in one of `FORMATS`, or has more than 8 bits per channel.
    """
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the caller has a limit of its own
            with Image.open(io.BytesIO(content), formats=known) as opened:
                header = read_image_header(opened)
    except UnidentifiedImageError as error:  # its text names an object in memory
        raise ValueError(
            f"got {len(content)} bytes of no known format, expected an image: {', '.join(known)}"
        ) from error
    except Exception as error:  # PIL raises many types
        raise ValueError(f"cannot be read ({shorten_reason(error)}), expected an image") from error
    header.check_depth("depth")
    return header.size


def _load_image(
    source: str, name: str, read: Callable[[str], bytes], limits: MediaLimits
) -> tuple[bytes, tuple[int, int]]:
    try:
        content = read(source)
    except Exception as error:
        raise ValueError(f"{name}: cannot be read ({_shorten(error)}), expected an image") from error
    try:
        size = read_header(content)
    except ValueError as error:
        # A path can be base64 as well. Whether there is such a file makes no difference to the message.
        is_short = len(source) < _SHORTEST_IMAGE and not _is_url(source) and not _DATA_URL.match(source)
        raise ValueError(f"{name}: {_describe_unread(source) if is_short else error}") from error
    limits.add_pixels(size, name)
    return content, size


def _load_file(source: str, name: str, kind: str, read: Callable[[str], bytes], loaded: LoadedMedia) -> str:
    try:
        content = read(source)
    except Exception as error:
        raise ValueError(f"{name}: cannot be read ({_shorten(error)}), expected a file with {kind}") from error
    suffix = os.path.splitext(urlsplit(source).path)[1] if _is_url(source) else ""
    return loaded.write_file(content, suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,10}", suffix) else _SUFFIX[kind])


def _describe_unread(source: str) -> str:
    return (
        f"got {abridged(source)}, expected an http or https URL, base64, or a file in a folder that this server allows "
        "(SWIFT_MEDIA_ALLOWED_DIRS)"
    )


def _shorten(error: Exception) -> str:
    return f"{error!s:.300}" if isinstance(error, ValueError) and str(error) else shorten_reason(error)


def _is_url(source: Any) -> bool:
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def _flatten(sources: Iterable[Any]) -> list[str]:
    return [each for source in sources for each in (source if isinstance(source, list) else [source])]


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() in ("1", "true", "yes", "on")


def _decode_base64(text: str) -> bytes | None:
    """Decode base64, with the letters of URLs or without, with line breaks or without padding; None if it is none."""
    packed = "".join(text.split()).replace("-", "+").replace("_", "/")
    if not _BASE64_LETTERS.fullmatch(packed):
        return None
    packed = packed.rstrip("=")
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except binascii.Error:
        return None


def _find_allowed_file(source: str) -> Path | None:
    """Return a file in one of the allowed folders, with links resolved; None for any other text.

    Relative paths are those in ROOT_IMAGE_DIR, as elsewhere in ms-swift.
    """
    allowed = [each.strip() for each in os.environ.get("SWIFT_MEDIA_ALLOWED_DIRS", "").split(",") if each.strip()]
    if not allowed or len(source) > 4096 or "\0" in source:
        return None
    try:
        file = Path(os.environ.get("ROOT_IMAGE_DIR") or ".", os.path.expanduser(source)).resolve()
        folders = [Path(os.path.expanduser(folder)).resolve() for folder in allowed]
        return file if any(file.is_relative_to(folder) for folder in folders) and file.is_file() else None
    except (OSError, RuntimeError):  # a name too long, a loop of links
        return None
