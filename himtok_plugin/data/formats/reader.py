"""What a reader of an annotation format is, and how it finds its files.

Contract: `tasks` runs in the main process and says what there is to be read, a small picklable thing per image or so,
in the order of the dataset; `records` runs in any process and reads one of them. What the latter needs to know is an
attribute of the reader, which is sent to the processes after `tasks` was called, and has to stay small.
Does not know any format.
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
    BadEntry,
    Record,
    SkipLog,
)


@dataclass(frozen=True)
class Source:
    """Where a dataset lies and which part of it is wanted.

    Attributes:
        name: of the dataset, as in the catalog.
        root: its folder.
        split: its part; the readers know theirs.
        annotations: the annotation file or folder, None: where the dataset's own archive puts it below `root`.
        images: the folder of images, None: likewise.
        check_images: whether every image has to be there, upright and with the annotated size.
        relative_paths: whether images go into rows relative to `root`, for use with ROOT_IMAGE_DIR.
        category: class of everything, for formats that know none.
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

    tasks_per_call = 16  # that are handed to a process at a time

    def __init__(self, source: Source) -> None:
        self.source = source

    @abstractmethod
    def tasks(self, log: SkipLog) -> Sequence[Any]:
        """What there is to be read, in order.

        Raises:
            ValueError: the annotations as a whole cannot be read.
            OSError: they are not there.
        """

    @abstractmethod
    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        """The records of one task.

        Raises:
            BadEntry: nothing more of it can be read; lesser things are told to the log.
        """

    def annotation_file(self, *candidates: str) -> Path:
        """The file that was named, or the first of `candidates` that is there, below the root."""
        return find_path(self.source.root, self.source.annotations, candidates, "annotations")

    def only_file(self, suffix: str) -> tuple[str, ...]:
        """Name of the root's file with the suffix, none where there are several: nobody can say which is meant."""
        names = [path.name for path in self.source.root.glob(f"*{suffix}")]
        return tuple(names) if len(names) == 1 else ()


def find_path(root: Path, given: Path | None, candidates: Sequence[str], what: str) -> Path:
    """The path that was given, or the first of `candidates` (may hold wildcards) that exists below `root`.

    Raises:
        ValueError: none does.
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
    raise ValueError(f"{what}: nothing of {', '.join(candidates)} in {root}; name it with --{what}")


_OTHER_NAMES = {"train": ("training",), "val": ("valid", "validation"), "test": ("testing",)}


def split_names(split: str) -> tuple[str, ...]:
    """What files and folders of a split are called, its own name first: Roboflow's `val` is `valid`."""
    return (split, *_OTHER_NAMES.get(split, ()))


def names_split(name: str, split: str) -> bool:
    """Whether a file's name holds a split's as a word: "refcoco_val.json" and "val2017" do, "retrieval" does not."""
    words = "|".join(map(re.escape, split_names(split)))
    return re.search(rf"(?<![a-z])({words})(?![a-z])", name, re.IGNORECASE) is not None


class ImageFinder:
    """Images by the names that annotations give them.

    Args:
        source: whose `images` folder, if given, is the only one looked in.
        folders: below the root, tried in this order; the last success is tried first.
    """

    def __init__(self, source: Source, folders: Sequence[str] = ("",)) -> None:
        self._source = source
        if source.images is not None:
            self._folders = [find_path(source.root, source.images, (), "images")]
        else:
            self._folders = [source.root / folder for folder in folders]
            self._folders = [folder for folder in self._folders if folder.is_dir()] or [source.root]

    def find(self, name: str, size: tuple[int, int] | None = None) -> tuple[str, tuple[int, int] | None]:
        """(path for rows, (h, w)) of an image.

        Args:
            name: relative to one of the folders.
            size: (h, w) as annotated; None: nothing is known.
        Returns:
            The size is that of the file; without `check_images` the annotated one.
        Raises:
            BadEntry: missing, unreadable, stored turned, or of another size.
        """
        if not isinstance(name, str) or not name:
            raise BadEntry(MISSING_IMAGE, f"got {name!r} for its name")
        path = self._path(name)
        if not self._source.check_images and size is not None:
            return self._as_written(path), size
        actual = oriented_image_size(path)
        if size is not None and actual != tuple(size):
            raise BadEntry(WRONG_SIZE, f"{path} has (h, w) = {actual}, its annotation {tuple(size)}")
        return self._as_written(path), actual

    def find_elsewhere(self, name: Any, size: tuple[int, int] | None = None) -> tuple[str, tuple[int, int]]:
        """Like `find`, by its base name too: "data/coco2014/train2014/x.jpg" is where somebody else's images lay."""
        name = name[0] if isinstance(name, list) and name else name
        try:
            return self.find(name, size)
        except BadEntry as error:
            if error.reason != MISSING_IMAGE or not isinstance(name, str) or Path(name).name in ("", name):
                raise
            return self.find(Path(name).name, size)

    def holds(self, name: str) -> bool:
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
        raise BadEntry(MISSING_IMAGE, f"{name} in {tried}")

    def _as_written(self, path: Path) -> str:
        if self._source.relative_paths:
            return Path(os.path.relpath(path, self._source.root)).as_posix()
        return str(path.absolute())


def oriented_image_size(path: Path) -> tuple[int, int]:
    """(h, w) read off an image's header.

    Raises:
        BadEntry: no image, or one whose header asks viewers to turn it. Annotation tools and most datasets' own code
            turn it, ms-swift shows a model the pixels as they are stored: masks would lie elsewhere.
    """
    try:
        with Image.open(path) as image:
            size = image.height, image.width
            orientation = _orientation(image)
    except FileNotFoundError as error:
        raise BadEntry(MISSING_IMAGE, str(path)) from error
    except Exception as error:  # PIL's readers raise nearly anything on damaged files
        raise BadEntry(UNREADABLE_IMAGE, f"{path}: {error}") from error
    if orientation in _TURNED:
        raise BadEntry(TURNED_IMAGE, f"{path}: orientation {orientation}: store it upright (mogrify -auto-orient)")
    return size


_UPRIGHT, _TURNED = 1, range(2, 9)  # EXIF's orientations; viewers take all other numbers for the first


def _orientation(image: Image.Image) -> int:
    try:
        # The base class's, as PNG's own decodes the whole picture first.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation, _UPRIGHT)
    except Exception:  # damaged EXIF is ignored by viewers as well
        return _UPRIGHT


def files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """All files with one of the suffixes (lower case), in folders below too, in the order of their names."""
    found = []
    for where, folders, names in os.walk(folder):
        folders.sort()
        found += [Path(where, name) for name in sorted(names) if Path(name).suffix.lower() in suffixes]
    return found


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
