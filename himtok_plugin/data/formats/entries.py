"""Files of entries, one after the other: a JSON list, JSON lines or Parquet; shared by readers of such files.

Contract: `EntryFiles.tasks` says where each entry stands (of Parquet: each group of rows), `load` reads it. Entries are
dictionaries. JSON lines may be called `.json`, as POPE's are; a single object may be an entry. Does not know what an
entry means.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.byte_ranges import Range, Ranges, read_json, walk
from himtok_plugin.data.records import BAD_ENTRY, BadEntry, SkipLog
from himtok_plugin.validation import abridged

from .reader import names_split

PARQUET = ".parquet"
_GROUP = -1  # length of a task that is a group of rows


class EntryFiles:
    """Entries of some files, in order.

    Args:
        paths: of one dataset.
        fields: one of which every entry has, and nothing that holds entries: tells an object that is an entry from
            one that holds them.
    """

    def __init__(self, paths: Sequence[Path], fields: Sequence[str]) -> None:
        self.paths = list(paths)
        self.fields = frozenset(fields)

    def tasks(self, log: SkipLog) -> Sequence[tuple[int, Range]]:
        """(file, (begin, length)) of each entry.

        Raises:
            ValueError: a file that is not what its name says, or is cut off.
        """
        return Joined([_Places(self._ranges(path)) for path in self.paths])

    def _ranges(self, path: Path) -> Ranges:
        ranges = Ranges()
        if path.suffix == PARQUET:
            for group in range(_parquet(path).num_row_groups):
                ranges.add(0, group, _GROUP)
        elif path.suffix == ".jsonl" or _has_lines(path):
            at = 0
            with open(path, "rb") as file:
                for line in file:
                    if line.strip():
                        ranges.add(0, at, len(line))
                    at += len(line)
        else:
            keys = set()
            for key, begin, length, value in walk(path):
                keys.add(key)
                # All of a list at the top level; beside the entries of an object may stand anything.
                if length and (key is None or isinstance(value, dict)):
                    ranges.add(0, begin, length)
            if keys & self.fields or (None not in keys and not len(ranges)):
                return _whole(path)
        return ranges

    def load(self, task: tuple[int, Range]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name for errors, entry) of a task.

        Raises:
            BadEntry: not UTF-8, not JSON, or no object.
        """
        file, (begin, length) = task
        path = self.paths[file]
        if length == _GROUP:
            table = _parquet(path).read_row_group(begin)
            for batch in table.to_batches(max_chunksize=64):
                for n, row in enumerate(batch.to_pylist()):
                    yield f"{path.name}, row group {begin}, row {n}", row
            return
        entry = read_json(path, (begin, length))
        if not isinstance(entry, dict):
            raise BadEntry(BAD_ENTRY, f"{path.name} at byte {begin}: {abridged(entry)}: expected an object")
        yield f"{path.name} at byte {begin}", entry


class Joined(Sequence):
    """Sequences one after the other; an item comes as (number of its sequence, item)."""

    def __init__(self, sequences: Sequence[Sequence[Any]]) -> None:
        self._sequences, self._ends, total = sequences, [], 0
        for own in sequences:
            total += len(own)
            self._ends.append(total)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[int, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        before = self._ends[number - 1] if number else 0
        return number, self._sequences[number][index - before]


class _Places(Sequence):
    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, index: int) -> Range:
        return self._ranges.range(index)


def _whole(path: Path) -> Ranges:
    ranges = Ranges()
    with open(path, "rb") as file:
        mark = file.read(3)
    begin = len(mark) if mark == b"\xef\xbb\xbf" else 0
    ranges.add(0, begin, path.stat().st_size - begin)
    return ranges


def _has_lines(path: Path) -> bool:
    """Whether a `.json` holds one object per line: its second line begins with another."""
    with open(path, "rb") as file:
        first, second = file.readline(1 << 20).strip(), file.read(1)
    return first.startswith(b"{") and first.endswith(b"}") and second == b"{"


def _parquet(path: Path):
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except ArrowException as error:
        raise ValueError(f"{path}: is not Parquet ({error})") from error


def files_of(
    root: Path, given: Path | None, patterns: Sequence[str], split: str | None = None, one_dataset: bool = False
) -> list[Path]:
    """All files of the first pattern that matches any below the root; a file or folder that was named instead.

    Args:
        split: only files with it in their names (`names_split`); a folder that was named may be one of a split itself,
            if none of its files names any. None: all.
        one_dataset: refuse files whose names differ in more than the number of a part, as refcoco_val and refcocog_val.
    Raises:
        ValueError: there are none, or those of several datasets.
    """
    if given is not None:
        path = given if given.is_absolute() or given.exists() else root / given
        if path.is_file():
            return [path]
        found = sorted(p for p in path.glob("*") if p.suffix in _SUFFIXES)
        if split is not None and any(names_split(p.stem, other) for p in found for other in (split, *_SPLITS)):
            found = [p for p in found if names_split(p.stem, split)]
        if not found:
            of = "" if split is None else f" of the split {split!r}"
            expected = f"a file or a folder of {', '.join(_SUFFIXES)}{of}"
            raise ValueError(f"annotations: got {str(given)!r}, expected {expected}")
    else:
        if not root.is_dir():
            raise ValueError(f"--root: got {str(root)!r}, expected a folder")
        for pattern in patterns:
            found = sorted(path for path in root.glob(pattern) if path.is_file())
            if found := [path for path in found if split is None or names_split(path.stem, split)]:
                break
        else:
            naming = "" if split is None else f" with {split!r} in its name"
            raise ValueError(
                f"annotations: nothing of {', '.join(patterns)}{naming} in {root}; name it with --annotations"
            )
    if one_dataset and len({_PART.sub("", path.stem) for path in found}) > 1:
        names = ", ".join(path.name for path in found[:6])
        raise ValueError(f"annotations: got {names}: expected one dataset; name a file of them with --annotations")
    return found


_SPLITS = ("train", "val", "test", "testA", "testB")
_PART = re.compile(r"[-_.](part[-_]?)?\d+(-of-\d+(-[0-9a-f]+)?)?$")  # "train-00000-of-00002-83ed8a1c3a4b8f5e", "val_1"
_SUFFIXES = (".json", ".jsonl", PARQUET)


def first_of(entry: dict[str, Any], *names: str) -> Any:
    """The first field that is there.

    Raises:
        BadEntry: none is.
    """
    for name in names:
        if entry.get(name) is not None:
            return entry[name]
    raise BadEntry(BAD_ENTRY, f"has none of {', '.join(names)}, but {', '.join(map(str, entry))}"[:300])
