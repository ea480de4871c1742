"""The base class of all readers, and how readers find their files and images.

Contract: `list_items` runs in the main process and returns what there is to read, one small picklable item per image or
entry, in the order of the dataset. `read_records` runs in a worker process and reads one item. What it needs is stored
in attributes of the reader, which is pickled after `list_items` was called and has to stay small.
"""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from himtok_plugin.data.class_maps import ClassMap
from himtok_plugin.data.records import Record
from himtok_plugin.data.skip_log import (
    DEEP_IMAGE,
    MISSING_IMAGE,
    NOT_UTF8,
    TURNED_IMAGE,
    UNREADABLE_FILE,
    UNREADABLE_FOLDER,
    UNREADABLE_IMAGE,
    AnnotationError,
    SkipLog,
)
from himtok_plugin.files.finder import find_in_any_case
from himtok_plugin.files.images import check_whole, read_header
from himtok_plugin.files.text import EncodingError, read_text
from himtok_plugin.files.walking import walk_files

ALL = "all"  # the split that stands for the whole of a dataset


@dataclass(frozen=True)
class Source:
    """The location of a dataset and the split to read.

    Attributes:
        name: of the dataset, as in the catalog.
        root: its folder.
        split: one of the format's splits.
        annotations: the annotation file or folder; None: its usual place below `root`.
        images: the folder of images; None: its usual place below `root`.
        check_images: whether every image must exist, with the annotated size and 8 bits per channel.
        relative_paths: whether samples get image paths relative to `root`, for use with ROOT_IMAGE_DIR.
        category: the class of every mask, for formats without classes.
        classes: pixel value, colour, class index or category id -> name, for formats that do not name their classes.
        crowds: whether annotations with `iscrowd` are single "objects", "groups" of objects, or what the file shows
            ("auto", see `crowds.py`).
    """

    name: str
    root: Path
    split: str
    annotations: Path | None = None
    images: Path | None = None
    check_images: bool = True
    relative_paths: bool = False
    category: str | None = None
    classes: ClassMap | None = None
    crowds: str = "auto"


class Reader(ABC):
    """Base of all readers.

    Args:
        source: see `Source`.
    """

    hint = ""  # what the error of a conversion without rows says about this format
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

    @classmethod
    def parts(cls, source: Source, splits: Sequence[str]) -> list[Source]:
        """What a dataset without files for all of it consists of: its splits.

        Args:
            source: of the split "all".
            splits: the format's other splits.
        """
        return [replace(source, split=split) for split in splits]

    def choose_tasks(self) -> tuple[tuple[str, ...], str]:
        """The tasks that the annotations can serve, and why; for formats without default tasks, after `list_items`."""
        raise NotImplementedError

    def annotation_file(self, *candidates: str) -> Path:
        """The file given as `Source.annotations`, or the first of `candidates` that exists below the root."""
        return find_path(self.source.root, self.source.annotations, candidates, "annotations")

    def only_file(self, suffix: str) -> tuple[str, ...]:
        """The name of the only file with this suffix in the root; empty if there are several, or none."""
        names = [path.name for path in self.source.root.glob(f"*{suffix}")]
        return tuple(names) if len(names) == 1 else ()


_OPTIONS = ("annotations", "images")


class NothingFoundError(ValueError):
    """A dataset's files are not where they usually lie."""


def find_path(root: Path, given: Path | None, candidates: Sequence[str], what: str) -> Path:
    """The path that was given, or the first of `candidates` (wildcards allowed) that exists below `root`.

    Without wildcards, a candidate is found in any case: CVAT keeps the capital of a subset "Train".

    Args:
        what: "annotations" or "images", the option that names the path; otherwise what the path is, without an option.

    Raises:
        NothingFoundError: no candidate exists.
        ValueError: the path that was given does not exist.
    """
    if given is not None:
        path = given if given.is_absolute() or os.path.exists(given) else root / given
        if not os.path.exists(path):
            raise ValueError(f"--{what}: got {str(given)!r:.300}, which does not exist")
        return path
    if not root.is_dir():
        raise ValueError(f"--root: got {str(root)!r}, expected a folder")
    for candidate in candidates:
        if any(c in candidate for c in "*?"):
            if found := next(iter(sorted(root.glob(candidate))), None):
                return found
        elif (path_in_any_case := find_in_any_case(root, candidate)) is not None:
            return path_in_any_case
    advice = f"name it with --{what}" if what in _OPTIONS else "it belongs to the dataset: put it there"
    raise NothingFoundError(f"{what}: found none of {', '.join(candidates)} in {root}; {advice}")


def read_upright_size(path: Path, annotated: tuple[int, int] | None = None) -> tuple[int, int]:
    """(h, w) from an image's header, as viewers show the image (see `files/images.py`).

    Args:
        annotated: (h, w) in the annotation, to detect one that was made for the stored pixels of a turned image.
    Raises:
        AnnotationError: not an image, a truncated one, too large for PIL, or with more than 8 bits per channel; or its
            annotation belongs to the stored pixels.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # larger images are an error of PIL
            header = read_header(image)
            check_whole(image)
    except FileNotFoundError as error:
        raise AnnotationError(MISSING_IMAGE, str(path)) from error
    except Exception as error:  # PIL's readers raise nearly anything on damaged files
        raise AnnotationError(UNREADABLE_IMAGE, f"{path}: {error}") from error
    try:
        header.check_depth(str(path))
    except ValueError as error:
        raise AnnotationError(DEEP_IMAGE, str(error)) from error
    if annotated is not None and header.size != tuple(annotated) == header.stored_size:
        raise AnnotationError(
            TURNED_IMAGE, f"{path} has (h, w) = {header.size}, its annotation {tuple(annotated)}{header.frame_note}"
        )
    return header.size


def list_files(folder: Path, suffixes: Sequence[str], log: SkipLog | None = None) -> list[Path]:
    """All files with one of the suffixes (lower case), in subfolders as well, also behind links, sorted by name.

    Args:
        log: gets the folders and files that cannot be read, and folders that are called like such files; None: a
            folder that cannot be listed is an error.
    Raises:
        OSError: without `log`.
    """

    def report(error: OSError) -> None:
        if log is None:
            raise error
        log.add(UNREADABLE_FOLDER, f"{error.filename}: {error.strerror}")

    def report_folder(path: Path) -> None:
        if log is not None and path.suffix.lower() in suffixes:
            log.add(UNREADABLE_FILE, f"{path}: is a folder, expected a file")

    found = []
    for path in walk_files(folder, report, report_folder):
        if path.suffix.lower() in suffixes:
            if os.path.isfile(path):
                found.append(path)
            elif log is not None:
                log.add(UNREADABLE_FILE, f"{path}: {_explain_unreadable(path)}")
    return found


def read_annotation_text(path: Path) -> str:
    """Read a text file of annotations.

    Raises:
        AnnotationError: in no encoding of Unicode, or no file that can be read.
    """
    if not os.path.isfile(path):
        raise AnnotationError(UNREADABLE_FILE, f"{path}: {_explain_unreadable(path)}")
    try:
        return read_text(path)
    except EncodingError as error:
        raise AnnotationError(NOT_UTF8, str(error)) from error


def _explain_unreadable(path: Path) -> str:
    """Why a path is no file that can be read: a link to nothing or to itself, or a pipe, which would block."""
    try:
        os.stat(path)
    except OSError as error:
        return error.strerror or str(error)
    return "is no regular file"


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
