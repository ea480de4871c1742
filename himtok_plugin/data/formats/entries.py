"""Files of entries, one after the other: a JSON list, JSON lines or Parquet; shared by readers of such files.

Contract: `EntryFiles.tasks` says where each entry stands (of Parquet: each group of rows), `load` reads it. Entries are
dictionaries. JSON lines may be called `.json`, as POPE's are. Does not know what an entry means.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...coco_masks import short
from ..byte_ranges import Ranges, read_json, walk
from ..records import BAD_ENTRY, BadEntry, SkipLog

PARQUET = ".parquet"
_GROUP = -1  # length of a task that is a group of rows


class EntryFiles:
    """Entries of some files, in order.

    Args:
        paths: of one dataset.
        key: in a JSON object, the list that is meant; None: every entry at the top level.
    """

    def __init__(self, paths: Sequence[Path], key: str | None = None) -> None:
        self.paths = list(paths)
        self.key = key

    def tasks(self, log: SkipLog) -> Sequence[tuple[int, int, int]]:
        """(file, begin, length) of each entry.

        Raises:
            ValueError: a file that is not what its name says, or is cut off.
        """
        return _EntryTasks([self._ranges(path) for path in self.paths])

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
            for key, begin, length, value in walk(path):
                if length and isinstance(value, dict) and (self.key is None or key == self.key):
                    ranges.add(0, begin, length)
        return ranges

    def load(self, task: tuple[int, int, int]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(name for errors, entry) of a task.

        Raises:
            BadEntry: not UTF-8, not JSON, or no object.
        """
        file, begin, length = task
        path = self.paths[file]
        if length == _GROUP:
            table = _parquet(path).read_row_group(begin)
            for batch in table.to_batches(max_chunksize=64):
                for n, row in enumerate(batch.to_pylist()):
                    yield f"{path.name}, row group {begin}, row {n}", row
            return
        entry = read_json(path, (begin, length))
        if not isinstance(entry, dict):
            raise BadEntry(BAD_ENTRY, f"{path.name} at byte {begin}: {short(entry)}: expected an object")
        yield f"{path.name} at byte {begin}", entry


class _EntryTasks(Sequence):
    def __init__(self, ranges: list[Ranges]) -> None:
        self._ranges, self._ends, total = ranges, [], 0
        for own in ranges:
            total += len(own)
            self._ends.append(total)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = bisect_right(self._ends, index)
        before = self._ends[file - 1] if file else 0
        return (file, *self._ranges[file].range(index - before))


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


def files_of(root: Path, given: Path | None, patterns: Sequence[str], what: str = "annotations") -> list[Path]:
    """All files of the first pattern that matches any below the root; a file or folder that was named instead.

    Raises:
        ValueError: there are none.
    """
    if given is not None:
        path = given if given.is_absolute() or given.exists() else root / given
        found = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix in _SUFFIXES)
        if not found:
            raise ValueError(f"{what}: got {str(given)!r}, expected a file or a folder of {', '.join(_SUFFIXES)}")
        return found
    if not root.is_dir():
        raise ValueError(f"--root: got {str(root)!r}, expected a folder")
    for pattern in patterns:
        if found := sorted(path for path in root.glob(pattern) if path.is_file()):
            return found
    raise ValueError(f"{what}: nothing of {', '.join(patterns)} in {root}; name it with --{what}")


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
