"""Several files or folders of one dataset, such as those of its splits, read one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from himtok_plugin.data.records import Record
from himtok_plugin.data.skip_log import UNREADABLE_FILE, SkipLog, StrictError

from .entries import ConcatenatedSequence
from .reader import ALL, NothingFoundError, Reader, Source


class JoinedReader(Reader):
    """The items of some readers. A part that cannot be read is skipped, unless it is the last that could be.

    Args:
        source: the whole dataset.
        readers: of its parts, at least one.
    """

    def __init__(self, source: Source, readers: Sequence[Reader]) -> None:
        super().__init__(source)
        self.readers = list(readers)
        self.hint = readers[0].hint
        self.items_per_call = min(reader.items_per_call for reader in readers)

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        parts: list[Sequence[Any]] = []
        errors: list[Exception] = []
        for reader in self.readers:
            try:
                parts.append(reader.list_items(log))
            except StrictError:
                raise
            except (ValueError, OSError) as error:
                errors.append(error)
                parts.append(())
        if len(errors) == len(self.readers):
            raise errors[0]
        log.add_all(UNREADABLE_FILE, [str(error) for error in errors])
        return ConcatenatedSequence(parts)

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        number, own = item
        yield from self.readers[number].read_records(own, log)

    def choose_tasks(self) -> tuple[tuple[str, ...], str]:
        return self.readers[0].choose_tasks()


def open_all_splits(reader_class: type[Reader], source: Source, splits: Sequence[str]) -> Reader:
    """Create the reader of a whole dataset: of its files without a split, or of those of all its splits.

    Args:
        source: with the split "all".
        splits: of the format.
    Raises:
        NothingFoundError: there are neither.
        ValueError: files that cannot be read.
    """
    try:
        return reader_class(source)
    except NothingFoundError as error:
        own = [split for split in splits if split != ALL]
        readers = []
        for part in reader_class.parts(source, own):
            try:
                readers.append(reader_class(part))
            except NothingFoundError:
                continue
        if not readers:
            raise NothingFoundError(f"{error}; nor are there files of a split ({', '.join(own)})") from error
    return readers[0] if len(readers) == 1 else JoinedReader(source, readers)
