"""The image files that a user names: single files, and all images below folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from himtok_plugin.files.walking import walk_files


@dataclass
class FoundImages:
    """Image files in order, and what else lies in the folders.

    Attributes:
        images: the files, each once.
        others: files of folders that are no images by their suffix.
    """

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)


def find_images(paths: Iterable[Path]) -> FoundImages:
    """List the images that paths name.

    Args:
        paths: files, which are taken whatever their suffix, and folders, which are searched with those below them.
    Raises:
        ValueError: a path does not exist, or a folder has no images.
    """
    found = FoundImages()
    for path in paths:
        if path.is_dir():
            inside = list(walk_files(path))
            images = [file for file in inside if is_image_name(file)]
            if not images:
                raise ValueError(f"image: got the folder {str(path)!r} without images, expected some")
            found.images += images
            found.others += [file for file in inside if not is_image_name(file)]
        elif path.exists():
            found.images.append(path)
        else:
            raise ValueError(f"image: got {str(path)!r}, which does not exist, expected an image file or a folder")
    found.images = list(dict.fromkeys(found.images))
    return found


def is_image_name(path: Path) -> bool:
    """Whether Pillow reads files of this suffix."""
    return path.suffix.lower() in Image.registered_extensions()
