"""The splits of datasets (train, val, test) as names of files, folders and options write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

_OTHER_NAMES = {"train": ("training",), "val": ("valid", "validation"), "test": ("testing",)}
SPLITS = tuple(_OTHER_NAMES)
_SPLIT_OF = {other: split for split, names in _OTHER_NAMES.items() for other in (split, *names)}
_WORDS = "|".join(sorted(_SPLIT_OF, key=len, reverse=True))
_FOLDER = re.compile(
    rf"(?:images?[-_])?({_WORDS})(?:[-_]?\d+|[-_]images?)?", re.IGNORECASE
)  # "train2017", "val_images"
_NEAREST = 2  # folders of a file that say which split it is of; those above them may be anything


def find_split(name: str, known: Sequence[str]) -> str | None:
    """The split of a dataset that a name means: `valid`, `Val` and `VALIDATION` are `val`; None: none."""
    for split in known:
        if name == split:
            return split
    lower = name.lower()
    return next((split for split in known if lower in split_names(split.lower())), None)


def split_names(split: str) -> tuple[str, ...]:
    """The names that a split has in files and folders, its own name first; Roboflow's `val` is `valid`."""
    return (split, *_OTHER_NAMES.get(split, ()))


def has_split_name(name: str, split: str) -> bool:
    """Whether a file name contains the split as a word: "refcoco_val.json" and "val2017" do, "retrieval" does not."""
    words = "|".join(map(re.escape, split_names(split)))
    return re.search(rf"(?<![a-z])({words})(?![a-z])", name, re.IGNORECASE) is not None


def splits_of_folders(folders: Sequence[str]) -> set[str]:
    """The splits that the last folders of a file's path are called after."""
    found = (_FOLDER.fullmatch(folder) for folder in folders[-_NEAREST:])
    return {_SPLIT_OF[match[1].lower()] for match in found if match}
