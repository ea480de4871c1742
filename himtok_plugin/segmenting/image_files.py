"""The image files that a user names: single files, and all images below folders."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from himtok_plugin.files.walking import walk_files

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")  # as servers take them
OVERLAY_ENDING = "_segmented.png"  # of pictures that a run writes


@dataclass
class FoundImages:
    """Image files in order, and what else lies in the folders.

    Attributes:
        images: the files, each once.
        others: files of folders that are no images by their suffix.
        earlier: pictures in folders that an earlier run has written.
        unreadable: folders that cannot be listed.
    """

    images: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    earlier: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)


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
            inside = list(walk_files(path, lambda error: found.unreadable.append(Path(error.filename))))
            earlier = [file for file in inside if file.name.endswith(OVERLAY_ENDING)]
            images = [file for file in inside if is_image_name(file) and file not in earlier]
            if not images:
                raise ValueError(f"image: got the folder {str(path)!r} without images, expected some")
            found.images += images
            found.earlier += earlier
            found.others += [file for file in inside if not is_image_name(file)]
        elif path.exists():
            found.images.append(path)
        else:
            raise ValueError(f"image: got {str(path)!r}, which does not exist, expected an image file or a folder")
    found.images = list(dict.fromkeys(found.images))
    return found


def is_image_name(path: Path) -> bool:
    """Whether files of this suffix are images, which Pillow reads and writes."""
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS


def is_other_file_name(path: Path) -> bool:
    """Whether Pillow knows this suffix, but not as that of an image that a run can write, such as .psd."""
    return path.suffix.lower() in Image.registered_extensions() and not is_image_name(path)
