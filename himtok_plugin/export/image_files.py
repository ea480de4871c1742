"""The image files of an export: found, checked, named and placed in the folder to write.

Contract: masks belong to upright images, and not all tools turn images by their EXIF orientation. So an image with one
is always stored upright, as is one whose suffix the tools do not know; all others are linked or copied as they are. All
names are flat and differ also in case and without their suffix, because labels of images have their names.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from himtok_plugin.data.formats.reader import IMAGE_SUFFIXES, read_upright_size
from himtok_plugin.data.skip_log import MISSING_IMAGE, NOT_UTF8, WRONG_SIZE, AnnotationError
from himtok_plugin.files.finder import FileFinder
from himtok_plugin.files.images import UPRIGHT, make_upright, open_header
from himtok_plugin.files.names import fold_name

COPY, LINK, NONE = "copy", "link", "none"
PLACEMENTS = (COPY, LINK, NONE)
_JPEG = (".jpg", ".jpeg")
_JPEG_MODES = ("L", "RGB", "CMYK")
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class ImageFile:
    """An image that was found.

    Attributes:
        path: absolute.
        size: (h, w) of the upright image.
        is_stored_anew: whether it has an orientation, or a suffix that tools do not know.
    """

    path: Path
    size: tuple[int, int]
    is_stored_anew: bool = False

    def place(self, target: Path, placement: str) -> None:
        """Write the image to a path.

        Args:
            target: with the suffix of `suffix`.
            placement: `copy` or `link`.
        """
        if self.is_stored_anew:
            with Image.open(self.path) as image:
                upright, profile = make_upright(image), image.info.get("icc_profile")
                if target.suffix.lower() in _JPEG:
                    upright = upright if upright.mode in _JPEG_MODES else upright.convert("RGB")
                    upright.save(target, quality=_JPEG_QUALITY, subsampling=0, icc_profile=profile)
                else:
                    upright.save(target, icc_profile=profile)
        elif placement == LINK:
            target.symlink_to(self.path)
        else:
            shutil.copyfile(self.path, target)

    @property
    def suffix(self) -> str:
        """The suffix of the placed file."""
        return self.path.suffix if self.path.suffix.lower() in IMAGE_SUFFIXES else ".png"


class ImageFiles:
    """Finds images by the paths in results.

    Args:
        results: the result file; relative paths are relative to its folder or to the working directory.
        root: the folder of relative paths instead, in which files are also found by their last part, such as those of
            another machine.
    """

    def __init__(self, results: Path, root: Path | None = None) -> None:
        if root is not None and not root.is_dir():
            raise ValueError(f"--root: got {str(root)!r}, expected a folder")
        self._root = root
        self._folders = [results.parent, Path()] if root is None else [root]
        self._finder = FileFinder(self._folders, IMAGE_SUFFIXES)

    def find(self, path: str, size: tuple[int, int] | None) -> ImageFile:
        """Find an image and check its size.

        Args:
            path: as a result names it.
            size: (h, w) of its masks; None if it has none.
        Raises:
            AnnotationError: missing, ambiguous, unreadable, or of another size than its masks.
        """
        try:
            path.encode("utf-8")
            found = self._locate(path)
        except UnicodeEncodeError as error:
            raise AnnotationError(NOT_UTF8, f"the name of {path!r}") from error
        except ValueError as error:
            raise AnnotationError(MISSING_IMAGE, str(error)) from error
        actual = read_upright_size(found, size)
        if size is not None and actual != size:
            raise AnnotationError(WRONG_SIZE, f"{found} has (h, w) = {actual}, its masks {size}")
        is_turned = open_header(found).orientation != UPRIGHT
        return ImageFile(found.absolute(), actual, is_turned or found.suffix.lower() not in IMAGE_SUFFIXES)

    def _locate(self, path: str) -> Path:
        if self._root is not None:
            return self._finder.find(path)
        for folder in self._folders:
            if "\0" not in path and os.path.isfile(folder / path):
                return folder / path
        tried = " and ".join(str(folder.absolute()) for folder in self._folders)
        raise ValueError(f"{path} (relative paths in {tried}); name the folder of the images with --root")


def name_files(files: Sequence[ImageFile]) -> list[str]:
    """Name the placed files: as they are called, behind their folders where two are called the same."""
    short = [Path(file.path.name).with_suffix(file.suffix).name for file in files]
    stems = [fold_name(Path(name).stem) for name in short]
    repeated = {stem for stem, count in Counter(stems).items() if count > 1}
    top = _common_folder(file.path for file in files)
    names, taken = [], set(stems) - repeated
    for file, name, stem in zip(files, short, stems, strict=True):
        if stem in repeated:
            name = "_".join(file.path.relative_to(top).with_suffix(file.suffix).parts)
            base, number = Path(name).stem, 1
            while fold_name(Path(name).stem) in taken:
                number += 1
                name = f"{base}-{number}{file.suffix}"
            taken.add(fold_name(Path(name).stem))
        names.append(name)
    return names


def name_in_place(files: Sequence[ImageFile]) -> tuple[Path, list[str]]:
    """The folder above all images, and their paths with slashes from there, for annotations without image files."""
    top = _common_folder(file.path for file in files)
    return top, [file.path.relative_to(top).as_posix() for file in files]


def _common_folder(paths: Iterable[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))
