"""Finds the images that annotations name, and checks them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.skip_log import AMBIGUOUS, MISSING_IMAGE, NOT_UTF8, WRONG_SIZE, AnnotationError
from himtok_plugin.files.finder import AmbiguousNameError, FileFinder, MissingFileError, find_in_any_case
from himtok_plugin.validation import abridged

from .reader import IMAGE_SUFFIXES, Source, find_path, read_upright_size

# A file below these has an image's name and is none, unless the annotation names the folder too.
_MASK_FOLDERS = re.compile(
    r"(?!.*(image|img|photo|picture))(.*[-_ ])?"
    r"(masks?|labels?|annotations?|gt|gtFine|gtCoarse|semantic|instances?|panoptic|stuffthingmaps)([-_ ].*)?|"
    r"Segmentation(Class|Object).*",
    re.IGNORECASE,
)


class ImageFinder:
    """Finds images by their names in the annotations (`files.finder`).

    Args:
        source: if its `images` is set, only this folder is searched.
        folders: folders below the root, in any case, searched in this order.
        split: of the dataset, if images of other splits lie beside those of this one.
    """

    def __init__(self, source: Source, folders: Sequence[str] = ("",), split: str | None = None) -> None:
        self._source = source
        if source.images is not None:
            own = [find_path(source.root, source.images, (), "images")]
            if not own[0].is_dir():
                raise ValueError(f"--images: got {str(source.images)!r}, a file, expected a folder")
        else:
            found = [find_in_any_case(source.root, folder) for folder in folders]
            own = [folder for folder in found if folder is not None and folder.is_dir()] or [source.root]
        excluded = _MASK_FOLDERS if source.images is None else None
        self._files = FileFinder(own, IMAGE_SUFFIXES, source.root, excluded, split)

    def find(
        self, name: Any, size: tuple[int, int] | None = None, near: Path | None = None, any_suffix: bool = False
    ) -> tuple[str, tuple[int, int]]:
        """Find an image: (path for samples, (h, w)).

        Args:
            name: its path or URL, also one of another machine, or a list of one.
            size: (h, w) as annotated; None: unknown.
            near, any_suffix: see `FileFinder.find`.
        Returns:
            The size is the file's; without `check_images` it is the annotated one, if there is one.
        Raises:
            AnnotationError: missing, ambiguous, unreadable, with more than 8 bits per channel, or of another size.
        """
        name = name[0] if isinstance(name, list) and len(name) == 1 else name
        if not isinstance(name, str) or not name:
            raise AnnotationError(MISSING_IMAGE, f"got {abridged(name)} for its name")
        try:
            path = self._files.find(name, near, any_suffix)
        except AmbiguousNameError as error:
            raise AnnotationError(AMBIGUOUS, str(error)) from error
        except MissingFileError as error:
            if self._source.check_images or "\0" in name:
                raise AnnotationError(MISSING_IMAGE, str(error)) from error
            path = self._files.folders[0] / name
        if not self._source.check_images and size is not None:
            return self._sample_path(path), size
        actual = read_upright_size(path, size)
        if size is not None and actual != tuple(size):
            raise AnnotationError(WRONG_SIZE, f"{path} has (h, w) = {actual}, its annotation {tuple(size)}")
        return self._sample_path(path), actual

    def has_image(self, name: str) -> bool:
        """Whether an image is in one of the folders, at the exact place."""
        return any(os.path.isfile(folder / name) for folder in self._files.folders)

    def _sample_path(self, path: Path) -> str:
        own = Path(os.path.relpath(path, self._source.root)) if self._source.relative_paths else path.absolute()
        found = own.as_posix() if self._source.relative_paths else str(own)
        try:
            found.encode("utf-8")
        except UnicodeEncodeError as error:  # a file system of another encoding
            raise AnnotationError(NOT_UTF8, f"the name of {found!r}: rename the file") from error
        return found


def find_mask(finder: FileFinder, name: Any, reason: str) -> Path:
    """Find a mask or label map that annotations name.

    Raises:
        AnnotationError: for the reason `reason`: there is none, or several.
    """
    try:
        return finder.find(str(name))
    except (MissingFileError, AmbiguousNameError) as error:
        raise AnnotationError(reason, str(error)) from error
