"""Files of entries: a JSON list, JSON lines or Parquet. Shared by the readers of such files.

Contract: `EntryFiles.list_items` returns the range of each entry (of Parquet: each row group), `load` reads it. Entries
are dictionaries. JSON lines may have the suffix `.json`, as POPE's do; a file may hold a single object as its only
entry.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from himtok_plugin.data.byte_ranges import Range, RangeIndex, iter_elements, read_json_at
from himtok_plugin.data.skip_log import BAD_ENTRY, UNREADABLE_FILE, AnnotationError, SkipLog
from himtok_plugin.files.splits import has_split_name
from himtok_plugin.files.text import skip_mark, strip_mark
from himtok_plugin.validation import abridged

PARQUET = ".parquet"
_ROW_GROUP = -1  # in place of a range's length: the begin is the number of a row group


class EntryFiles:
    """The entries of some files, in order.

    Args:
        paths: the files of one dataset.
        fields: fields that only entries have; an object with one of them at the top of a file is the only entry.
    """

    def __init__(self, paths: Sequence[Path], fields: Sequence[str]) -> None:
        self.paths = list(paths)
        self.fields = frozenset(fields)

    def list_items(self, log: SkipLog) -> Sequence[tuple[int, Range]]:
        """(number of the file, (begin, length)) of each entry.

        Raises:
            ValueError: no file can be read; if others can, a file that does not have the format of its suffix, or is
            truncated, is skipped.
        """
        found, errors = [], []
        for path in self.paths:
            try:
                found.append(_EntryRanges(self._ranges(path)))
            except (ValueError, OSError) as error:
                errors.append(error)
                found.append(_EntryRanges(RangeIndex()))
        if errors and len(errors) == len(self.paths):
            raise errors[0]
        log.add_all(UNREADABLE_FILE, [str(error) for error in errors])
        return ConcatenatedSequence(found)

    def _ranges(self, path: Path) -> RangeIndex:
        ranges = RangeIndex()
        if path.suffix.lower() == PARQUET:
            for group in range(_open_parquet(path).num_row_groups):
                ranges.add(0, group, _ROW_GROUP)
        elif path.suffix.lower() == ".jsonl" or _has_lines(path):
            with open(path, "rb") as file:
                at = skip_mark(file, str(path))
                for line in file:
                    if strip_mark(line).strip():
                        ranges.add(0, at, len(line))
                    at += len(line)
        else:
            keys = set()
            for key, begin, length, value in iter_elements(path):
                keys.add(key)
                # Every element of a top-level list is an entry; an object may have other values beside its entries.
                if length and (key is None or isinstance(value, dict)):
                    ranges.add(0, begin, length)
            if keys & self.fields or (None not in keys and not len(ranges)):
                return _whole_file(path)
        return ranges

    def load(self, item: tuple[int, Range]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name for errors, entry) of an item.

        Raises:
            AnnotationError: not UTF-8, not JSON, or not an object.
        """
        file, (begin, length) = item
        path = self.paths[file]
        if length == _ROW_GROUP:
            table = _read_row_group(path, begin)
            for batch in table.to_batches(max_chunksize=64):
                for n, row in enumerate(batch.to_pylist()):
                    yield f"{path.name}, row group {begin}, row {n}", row
            return
        entry = read_json_at(path, (begin, length))
        if not isinstance(entry, dict):
            raise AnnotationError(BAD_ENTRY, f"{path.name} at byte {begin}: {abridged(entry)}: expected an object")
        yield f"{path.name} at byte {begin}", entry


class ConcatenatedSequence(Sequence[tuple[int, Any]]):
    """Several sequences in a row; an element is (number of its sequence, element)."""

    def __init__(self, sequences: Sequence[Sequence[Any]]) -> None:
        self._sequences = sequences
        self._ends = list(accumulate(map(len, sequences)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        before = self._ends[number - 1] if number else 0
        return number, self._sequences[number][index - before]


class _EntryRanges(Sequence[Range]):
    def __init__(self, ranges: RangeIndex) -> None:
        self._ranges = ranges

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, index: Any) -> Any:
        return self._ranges.range(index)


def _whole_file(path: Path) -> RangeIndex:
    """The range of all but the byte order mark."""
    ranges = RangeIndex()
    with open(path, "rb") as file:
        begin = skip_mark(file, str(path))
    ranges.add(0, begin, path.stat().st_size - begin)
    return ranges


def _has_lines(path: Path) -> bool:
    """Whether a `.json` file holds one object per line: whether its second line starts with an object as well."""
    with open(path, "rb") as file:
        skip_mark(file, str(path))
        first, second = file.readline(1 << 20).strip(), file.read(1)
    return first.startswith(b"{") and first.endswith(b"}") and second == b"{"


def _open_parquet(path: Path) -> Any:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except ArrowException as error:
        raise ValueError(f"{path}: is not Parquet ({error})") from error


def _read_row_group(path: Path, number: int) -> Any:
    from pyarrow import ArrowException

    try:
        return _open_parquet(path).read_row_group(number)
    except (ArrowException, OSError) as error:
        raise AnnotationError(UNREADABLE_FILE, f"{path}, row group {number}: {error}") from error


def find_entry_files(
    root: Path, given: Path | None, patterns: Sequence[str], split: str | None = None, one_dataset: bool = False
) -> list[Path]:
    """All files of the first pattern that matches any file below the root, or those of the given file or folder.

    Args:
        split: only files with the split in their names (`has_split_name`). In a given folder, files without any split
            in their names are accepted. None: all files.
        one_dataset: refuse files whose names differ in more than the number of a part, like refcoco_val and
            refcocog_val.
    Raises:
        ValueError: there are no files, or files of several datasets.
    """
    if given is not None:
        path = given if given.is_absolute() or given.exists() else root / given
        if path.is_file():
            return [path]
        found = sorted(p for p in path.glob("*") if p.suffix.lower() in _SUFFIXES)
        if split is not None and any(has_split_name(p.stem, other) for p in found for other in (split, *_SPLITS)):
            found = [p for p in found if has_split_name(p.stem, split)]
        if not found:
            of = "" if split is None else f" of the split {split!r}"
            expected = f"a file or a folder of {', '.join(_SUFFIXES)}{of}"
            raise ValueError(f"annotations: got {str(given)!r}, expected {expected}")
    else:
        if not root.is_dir():
            raise ValueError(f"--root: got {str(root)!r}, expected a folder")
        for pattern in patterns:
            found = sorted(path for path in root.glob(pattern) if path.is_file())
            if found := [path for path in found if split is None or has_split_name(path.stem, split)]:
                break
        else:
            naming = "" if split is None else f" with {split!r} in its name"
            raise ValueError(
                f"annotations: found none of {', '.join(patterns)}{naming} in {root}; name it with --annotations"
            )
    if one_dataset and len({_PART.sub("", path.stem) for path in found}) > 1:
        names = ", ".join(path.name for path in found[:6])
        raise ValueError(f"annotations: got {names}: expected one dataset; name one of them with --annotations")
    return found


_SPLITS = ("train", "val", "test", "testA", "testB")
_PART = re.compile(r"[-_.](part[-_]?)?\d+(-of-\d+(-[0-9a-f]+)?)?$")  # "train-00000-of-00002-83ed8a1c3a4b8f5e", "val_1"
_SUFFIXES = (".json", ".jsonl", PARQUET)


def first_field(entry: dict[str, Any], *names: str) -> Any:
    """The first of these fields that has a value.

    Raises:
        AnnotationError: none has.
    """
    for name in names:
        if entry.get(name) is not None:
            return entry[name]
    raise AnnotationError(BAD_ENTRY, f"has none of {', '.join(names)}, but {', '.join(map(str, entry))}"[:300])
