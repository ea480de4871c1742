"""The base class of all readers, and how readers find their files and images.

Contract: `list_items` runs in the main process and returns what there is to read, one small picklable item per image or
entry, in the order of the dataset. `read_records` runs in a worker process and reads one item. What it needs is stored
in attributes of the reader, which is pickled after `list_items` was called and has to stay small.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from himtok_plugin.data.records import (
    MISSING_IMAGE,
    TURNED_IMAGE,
    UNREADABLE_IMAGE,
    WRONG_SIZE,
    AnnotationError,
    Record,
    SkipLog,
)


@dataclass(frozen=True)
class Source:
    """The location of a dataset and the split to read.

    Attributes:
        name: of the dataset, as in the catalog.
        root: its folder.
        split: one of the format's splits.
        annotations: the annotation file or folder; None: its usual place below `root`.
        images: the folder of images; None: its usual place below `root`.
        check_images: whether every image must exist, stored upright and with the annotated size.
        relative_paths: whether samples get image paths relative to `root`, for use with ROOT_IMAGE_DIR.
        category: the class of every mask, for formats without classes.
    """

    name: str
    root: Path
    split: str
    annotations: Path | None = None
    images: Path | None = None
    check_images: bool = True
    relative_paths: bool = False
    category: str | None = None


class Reader(ABC):
    """Base of all readers.

    Args:
        source: see `Source`.
    """

    items_per_call = 16  # items that a worker process gets at a time

    def __init__(self, source: Source) -> None:
        self.source = source

    @abstractmethod
    def list_items(self, log: SkipLog) -> Sequence[Any]:
        """What there is to read, in the order of the dataset.

        Raises:
            ValueError: the annotations as a whole cannot be read.
            OSError: they do not exist.
        """

    @abstractmethod
    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        """The records of one item. Annotations that cannot be used are added to the log.

        Raises:
            AnnotationError: the rest of the item cannot be read.
        """

    def annotation_file(self, *candidates: str) -> Path:
        """The file given as `Source.annotations`, or the first of `candidates` that exists below the root."""
        return find_path(self.source.root, self.source.annotations, candidates, "annotations")

    def only_file(self, suffix: str) -> tuple[str, ...]:
        """The name of the only file with this suffix in the root; empty if there are several, or none."""
        names = [path.name for path in self.source.root.glob(f"*{suffix}")]
        return tuple(names) if len(names) == 1 else ()


def find_path(root: Path, given: Path | None, candidates: Sequence[str], what: str) -> Path:
    """The path that was given, or the first of `candidates` (wildcards allowed) that exists below `root`.

    Raises:
        ValueError: none exists.
    """
    if given is not None:
        path = given if given.is_absolute() or given.exists() else root / given
        if not path.exists():
            raise ValueError(f"{what}: got {str(given)!r}, which does not exist")
        return path
    if not root.is_dir():
        raise ValueError(f"--root: got {str(root)!r}, expected a folder")
    for candidate in candidates:
        found = sorted(root.glob(candidate)) if any(c in candidate for c in "*?") else [root / candidate]
        for path in found:
            if path.exists():
                return path
    raise ValueError(f"{what}: found none of {', '.join(candidates)} in {root}; name it with --{what}")


_OTHER_NAMES = {"train": ("training",), "val": ("valid", "validation"), "test": ("testing",)}


def split_names(split: str) -> tuple[str, ...]:
    """The names that a split has in files and folders, its own name first; Roboflow's `val` is `valid`."""
    return (split, *_OTHER_NAMES.get(split, ()))


def has_split_name(name: str, split: str) -> bool:
    """Whether a file name contains the split as a word: "refcoco_val.json" and "val2017" do, "retrieval" does not."""
    words = "|".join(map(re.escape, split_names(split)))
    return re.search(rf"(?<![a-z])({words})(?![a-z])", name, re.IGNORECASE) is not None


class ImageFinder:
    """Finds images by their names in the annotations.

    Args:
        source: if its `images` is set, only this folder is searched.
        folders: folders below the root, searched in this order, but first where the last image was found.
    """

    def __init__(self, source: Source, folders: Sequence[str] = ("",)) -> None:
        self._source = source
        if source.images is not None:
            self._folders = [find_path(source.root, source.images, (), "images")]
        else:
            self._folders = [source.root / folder for folder in folders]
            self._folders = [folder for folder in self._folders if folder.is_dir()] or [source.root]

    def find(self, name: Any, size: tuple[int, int] | None = None) -> tuple[str, tuple[int, int]]:
        """Find an image: (path for samples, (h, w)).

        Args:
            name: relative to one of the folders.
            size: (h, w) as annotated; None: unknown.
        Returns:
            The size is the file's; without `check_images` it is the annotated one.
        Raises:
            AnnotationError: missing, unreadable, stored rotated or mirrored, or of another size.
        """
        if not isinstance(name, str) or not name:
            raise AnnotationError(MISSING_IMAGE, f"got {name!r} for its name")
        path = self._path(name)
        if not self._source.check_images and size is not None:
            return self._sample_path(path), size
        actual = read_upright_size(path)
        if size is not None and actual != tuple(size):
            raise AnnotationError(WRONG_SIZE, f"{path} has (h, w) = {actual}, its annotation {tuple(size)}")
        return self._sample_path(path), actual

    def find_by_base_name(self, name: Any, size: tuple[int, int] | None = None) -> tuple[str, tuple[int, int]]:
        """Like `find`, then by the base name alone: "data/coco2014/train2014/x.jpg" is a path of another machine."""
        name = name[0] if isinstance(name, list) and name else name
        try:
            return self.find(name, size)
        except AnnotationError as error:
            if error.reason != MISSING_IMAGE or not isinstance(name, str) or Path(name).name in ("", name):
                raise
            return self.find(Path(name).name, size)

    def has_image(self, name: str) -> bool:
        """Whether an image is in one of the folders."""
        return any((folder / name).is_file() for folder in self._folders)

    def _path(self, name: str) -> Path:
        for i, folder in enumerate(self._folders):
            path = folder / name
            if path.is_file():
                if i:
                    self._folders.insert(0, self._folders.pop(i))
                return path
        if not self._source.check_images:
            return self._folders[0] / name
        tried = ", ".join(str(folder) for folder in self._folders[:4])
        raise AnnotationError(MISSING_IMAGE, f"{name} in {tried}")

    def _sample_path(self, path: Path) -> str:
        if self._source.relative_paths:
            return Path(os.path.relpath(path, self._source.root)).as_posix()
        return str(path.absolute())


def read_upright_size(path: Path) -> tuple[int, int]:
    """(h, w) from an image's header.

    Raises:
        AnnotationError: not an image, or one with an EXIF orientation. Annotation tools and the code of most datasets
            rotate such an image, ms-swift passes the stored pixels to the model: masks would not fit.
    """
    try:
        with Image.open(path) as image:
            size = image.height, image.width
            orientation = _orientation(image)
    except FileNotFoundError as error:
        raise AnnotationError(MISSING_IMAGE, str(path)) from error
    except Exception as error:  # PIL's readers raise nearly anything on damaged files
        raise AnnotationError(UNREADABLE_IMAGE, f"{path}: {error}") from error
    if orientation in _TURNED:
        raise AnnotationError(
            TURNED_IMAGE, f"{path}: orientation {orientation}: store it upright (mogrify -auto-orient)"
        )
    return size


_UPRIGHT, _TURNED = 1, range(2, 9)  # EXIF orientations; viewers treat all other numbers as upright


def _orientation(image: Image.Image) -> int:
    try:
        # The base class's method, because PNG's own decodes the whole image first.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, _UPRIGHT)
    except Exception:  # viewers ignore damaged EXIF data, too
        return _UPRIGHT


def list_files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """All files with one of the suffixes (lower case), in subfolders as well, sorted by name."""
    found = []
    for where, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(where, name) for name in sorted(names) if Path(name).suffix.lower() in suffixes]
    return found


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
