"""Finds a file by a name that another program, person or machine gave it.

Contract: a file at the exact place is taken. Otherwise all files below the folders are indexed once per process, by
their last part without regard to case, and the one that has most of the name's folders is taken. If several have
equally many, none is guessed.
"""

from __future__ import annotations

import filecmp
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from .names import fold_name, name_parts, portable_names, without_upload_prefix
from .splits import SPLITS, splits_of_folders
from .walking import walk_files

MOST_INDEXED = 4_000_000  # files; an index of more would take over a gigabyte
_LISTED = 4  # candidates in a message
_SAME_SUFFIX = {".jpeg": ".jpg", ".tiff": ".tif"}


class MissingFileError(ValueError):
    """There is no file of that name."""


class AmbiguousNameError(ValueError):
    """Several files fit the name equally well."""


class FileFinder:
    """Finds files below some folders.

    Args:
        folders: searched in this order for the exact name, but first where the last file was found.
        suffixes: of files that are found by their last part, in lower case with the dot.
        above: a folder whose parents are searched for exact names only, never listed.
        excluded: folders, by their names, whose files have to be named with that folder.
        split: the files of other splits are not found by their last part; None: of any split.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        suffixes: Collection[str],
        above: Path | None = None,
        excluded: re.Pattern[str] | None = None,
        split: str | None = None,
    ) -> None:
        self.folders = list(folders)
        self._suffixes, self._above, self._excluded = frozenset(suffixes), above, excluded
        self._splits = {split} if split in SPLITS else set()
        self._index: dict[str, list[str]] | None = None
        self._listed: list[Path] = []

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_index": None}  # each process lists the folders when it needs to

    def find(self, name: str, near: Path | None = None, any_suffix: bool = False) -> Path:
        """Find a file.

        Args:
            name: a path or URL.
            near: a folder, such as that of the annotation, whose file of that last part is taken before all others.
            any_suffix: whether a file with another suffix may be meant, if there is none with the name's own.
        Raises:
            MissingFileError: there is none.
            AmbiguousNameError: there are several; the message lists them.
        """
        if "\0" in name:
            raise MissingFileError(f"{name!r:.200} has a zero byte, which no file name has")
        forms = portable_names(name)
        if (exact := self._find_exact(forms, near)) is not None:
            return exact
        if near is not None:
            last_parts = [name_parts(form)[-1:] for form in forms]
            if beside := [near / part for (part,) in filter(None, last_parts) if os.path.isfile(near / part)]:
                return beside[0]
        for shorten in (False, True):
            for keep_suffix in (True, False)[: 1 + any_suffix]:
                if (found := self._find_indexed(name, forms, near, shorten, keep_suffix)) is not None:
                    return found
        raise MissingFileError(self._describe_missing(name))

    def _find_exact(self, forms: Sequence[str], near: Path | None) -> Path | None:
        for form in forms:
            if near is not None and os.path.isfile(path := near / form):
                return path
            for i, folder in enumerate(self.folders):
                # `os.path.isfile` is false for names that are too long, and for links that lead to themselves.
                if os.path.isfile(path := folder / form):
                    if i:
                        self.folders.insert(0, self.folders.pop(i))
                    return path
        return None

    def _find_indexed(
        self, name: str, forms: Sequence[str], near: Path | None, shorten: bool, keep_suffix: bool
    ) -> Path | None:
        """The file with the longest end of the name; `shorten`: without the prefix that uploading puts in front."""
        best: list[str] = []
        most = 0
        for form in forms:
            parts = name_parts(form)
            if shorten and parts:
                last = without_upload_prefix(parts[-1])
                parts = [*parts[:-1], last] if last is not None else []
            if not parts:
                continue
            for path in self._candidates(parts, keep_suffix):
                common = _count_common(parts, path)
                if common > most:
                    best, most = [], common
                if common == most and path not in best:
                    best.append(path)
        if near is not None and len(best) > 1:
            best = [path for path in best if Path(path).parent == near] or best
        if len(best) > 1 and not _are_copies(best):
            listed = ", ".join(best[:_LISTED]) + (f" and {len(best) - _LISTED} more" if len(best) > _LISTED else "")
            raise AmbiguousNameError(f"{name!r:.200} may be {listed}")
        return Path(best[0]) if best else None

    def _candidates(self, parts: Sequence[str], keep_suffix: bool) -> list[str]:
        stem, suffix = self._split_suffix(parts[-1])
        if not keep_suffix:
            suffix = ""
        splits = splits_of_folders(parts[:-1]) or self._splits
        found = []
        for path in self._indexed().get(fold_name(stem), ()):
            if (suffix and self._split_suffix(path)[1] != suffix) or not os.path.isfile(path):
                continue  # the link to a file may be broken
            folders = self._folders_below(path)
            own = splits_of_folders(folders)
            if splits and own and not splits & own:
                continue  # the image of this name in another split
            if self._excluded is not None:
                named = {fold_name(part) for part in parts[:-1]}
                if any(self._excluded.fullmatch(part) and fold_name(part) not in named for part in folders):
                    continue
            found.append(path)
        return found

    def _split_suffix(self, name: str) -> tuple[str, str]:
        """The last part without its suffix, and its suffix; the suffix is empty if files of it are not searched for."""
        stem, suffix = os.path.splitext(os.path.basename(name))
        suffix = suffix.lower()
        if suffix not in self._suffixes:
            return os.path.basename(name), ""
        return stem, _SAME_SUFFIX.get(suffix, suffix)

    def _folders_below(self, path: str) -> Sequence[str]:
        """The folders of an indexed file, below the folder that was listed."""
        for top in self._listed:
            if path.startswith(f"{top}{os.sep}"):
                return Path(path).relative_to(top).parts[:-1]
        return ()

    def _tops(self) -> list[Path]:
        """The folders to list: those that exist, without those inside another one, and none that contains `above`."""
        above = set(self._above.absolute().parents) if self._above is not None else set()
        above = {Path(os.path.normpath(path)) for path in above}
        tops: list[Path] = []
        existing = (Path(os.path.normpath(folder.absolute())) for folder in self.folders if folder.is_dir())
        for folder in sorted(set(existing), key=lambda path: len(path.parts)):
            if folder not in above and not any(folder.is_relative_to(top) for top in tops):
                tops.append(folder)
        return tops

    def _indexed(self) -> dict[str, list[str]]:
        if self._index is None:
            self._index, self._listed = {}, self._tops()
            count = 0
            for top in self._listed:
                for path in walk_files(top):
                    if path.suffix.lower() not in self._suffixes:
                        continue
                    if (count := count + 1) > MOST_INDEXED:
                        self._index = {}
                        return self._index
                    self._index.setdefault(fold_name(path.stem), []).append(str(path))
        return self._index

    def _describe_missing(self, name: str) -> str:
        tried = ", ".join(map(str, self.folders[:_LISTED]))
        try:
            os.stat(self.folders[0] / name)
        except FileNotFoundError:
            reason = ""
        except OSError as error:
            reason = f" ({error.strerror})"  # the name is too long, or a link leads to itself
        else:
            reason = " (is no regular file)"
        return f"{_abridge(name)} in {tried}{reason}"


def find_in_any_case(folder: Path, name: str) -> Path | None:
    """The file or folder of a relative path, whose parts may differ in case from those on disk; None: there is none.

    The exact one wins; of several others, the first by name.
    """
    if os.path.exists(path := folder / name):
        return path
    path = folder
    for part in Path(name).parts:
        if not os.path.exists(path / part):
            try:
                equal = sorted(own for own in os.listdir(path) if fold_name(own) == fold_name(part))
            except OSError:
                return None
            if not equal:
                return None
            part = equal[0]
        path = path / part
    return path


def _abridge(name: str) -> str:
    return name if len(name) <= 160 else f"{name[:100]}…{name[-40:]} ({len(name)} characters)"


def _count_common(parts: Sequence[str], path: str) -> int:
    """How many parts at the end of a name are also at the end of a path, the last one aside, which is known to be."""
    common = 1
    for mine, its in zip(reversed(parts[:-1]), reversed(Path(path).parts[:-1]), strict=False):
        if fold_name(mine) != fold_name(its):
            break
        common += 1
    return common


def _are_copies(paths: Sequence[str]) -> bool:
    """Whether files have the same content, so that it does not matter which one is meant."""
    try:
        return all(filecmp.cmp(paths[0], path, shallow=False) for path in paths[1:])
    except OSError:
        return False
