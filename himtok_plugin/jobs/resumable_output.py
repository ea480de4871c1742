"""The output of a long run over a file of lines: survives a kill, goes on where it stopped, several processes at once.

Purpose: what lies beside OUT while a run is on, and how it becomes OUT.
Contract: each process appends one line to its part for every input line of its own, in their order, so that the number
of whole lines in a part says where to go on. OUT appears in one stroke when all parts are finished, in the order of the
input; before that, and after a kill, there are

- OUT.rank<r>-of-<n>.part: lines that go into OUT, empty lines (which do not), and `REJECTED` ones, which become
- OUT.rejects.jsonl, at the end, and only if there are any;
- OUT.state.json: what the parts are made from, kept beside the finished OUT to say of what it is.

The input is dealt out in blocks of neighbouring lines, because equal things tend to stand together.
Does not know what is in a line.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from .processes import Processes

REJECTED = b"!"  # begins a part's line that belongs into the rejects file; no JSON begins with it
BLOCK = 64  # neighbouring lines for the same process


class OutputPart:
    """One process's share of the output, open for appending. `finished` lines of it were there before."""

    def __init__(self, file: BinaryIO, finished: int) -> None:
        self.finished = finished
        self._file = file

    def append(self, lines: Iterable[bytes]) -> None:
        """Add lines, without their line ends; from here on a kill of this process does not lose them."""
        self._file.write(b"".join(line + b"\n" for line in lines))
        self._file.flush()


class ResumableOutput:
    """OUT and the files beside it.

    Args:
        source: the input, a file of lines.
        out: the file to be written.
        made_by: name -> fingerprint of everything else that the lines depend on.
        processes: those that share the work.
    """

    def __init__(self, source: Path, out: Path, made_by: dict[str, str], processes: Processes) -> None:
        self.source, self.out = source, out
        self.processes = processes
        self.rows = 0  # lines of the input, known after `begin`
        self._made_by = made_by
        self._state_file = _beside(out, ".state.json")
        self.rejects = _beside(out, ".rejects.jsonl")

    def begin(self, overwrite: bool = False) -> dict[str, Any] | None:
        """Make ready, or find out that there is nothing to do; all processes call this first.

        Args:
            overwrite: forget what was done before.
        Returns:
            The state of an OUT that is complete already, else None.
        Raises:
            ValueError: OUT was begun from something else, or is a file of which nothing is known.
        """
        state = self.processes.first(lambda: self._begin(overwrite))
        self.rows = state["rows"]
        return state if state["complete"] else None

    def _begin(self, overwrite: bool) -> dict[str, Any]:
        if self.out.exists() and self.out.samefile(self.source):
            raise ValueError(f"OUT is {str(self.out)!r}, the input itself: expected another file")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        rows, digest = _count_lines(self.source)
        expected = {"input": digest, **self._made_by, "processes": self.processes.count}
        state = None if overwrite else self._read_state()
        if state is not None:
            self._check_same(state, expected)
            if not state["complete"] or self.out.exists():
                return state
        elif self.out.exists() and not overwrite:
            raise ValueError(f"{self.out}: exists, and no {self._state_file.name} says of what it is; give --overwrite")
        # Nobody knows any more of what parts without a state are.
        for leftover in (*self._parts(), self.out, self.rejects):
            leftover.unlink(missing_ok=True)
        state = {**expected, "input_path": str(self.source), "rows": rows, "complete": False, "rejected": 0}
        self._write_state(state)
        return state

    def _read_state(self) -> dict[str, Any] | None:
        try:
            return json.loads(self._state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{self._state_file}: is not JSON ({error}); give --overwrite to begin again") from error

    def _check_same(self, state: dict[str, Any], expected: dict[str, Any]) -> None:
        for name, value in expected.items():
            if name == "processes" and state["complete"]:
                continue  # the result does not depend on it
            if state.get(name) != value:
                raise ValueError(
                    f"{self.out}: was begun with {name} {state.get(name)}, this is {value}: expected the same, "
                    "or --overwrite to begin again"
                )

    def _write_state(self, state: dict[str, Any]) -> None:
        with _replacing(self._state_file) as file:
            file.write(json.dumps(state, indent=2).encode() + b"\n")

    @contextmanager
    def part(self, redo_rejected: bool = False) -> Iterator[OutputPart]:
        """This process's part, cut back to its last whole line.

        Args:
            redo_rejected: cut it back to before its first rejected line.
        Raises:
            ValueError: another run is writing it.
        """
        with os.fdopen(os.open(self._part(self.processes.rank), os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            _lock(file, self.out)
            finished = end = 0
            for line in file:
                if not line.endswith(b"\n") or (redo_rejected and line.startswith(REJECTED)):
                    break
                finished, end = finished + 1, end + len(line)
            file.seek(end)
            file.truncate()
            yield OutputPart(file, finished)

    def own_rows(self) -> int:
        """How many lines of the input are this process's."""
        rounds, rest = divmod(self.rows, BLOCK * self.processes.count)
        return rounds * BLOCK + min(max(rest - BLOCK * self.processes.rank, 0), BLOCK)

    def own_lines(self, finished: int) -> Iterator[tuple[int, bytes]]:
        """(number, counted from 1; line) of this process's input, without the first `finished` ones."""
        with open(self.source, "rb") as file:
            own = ((n, line) for n, line in enumerate(file, 1) if self._owner(n) == self.processes.rank)
            yield from islice(own, finished, None)

    def _owner(self, number: int) -> int:
        return (number - 1) // BLOCK % self.processes.count

    def finish(self) -> int:
        """Join the parts when all processes have come here; the number of rejected lines."""
        self.processes.sums([0])
        return self.processes.first(self._join)

    def _join(self) -> int:
        rejected = 0
        with ExitStack() as stack:
            parts = [stack.enter_context(open(self._part(rank), "rb")) for rank in range(self.processes.count)]
            rejects = stack.enter_context(_replacing(self.rejects))
            out = stack.enter_context(_replacing(self.out))
            for number in range(1, self.rows + 1):
                line = parts[self._owner(number)].readline()
                if not line.endswith(b"\n"):
                    raise ValueError(f"{self.source}: row {number} is missing in the parts: was the input changed?")
                if line.startswith(REJECTED):
                    rejects.write(line.removeprefix(REJECTED))
                    rejected += 1
                elif line != b"\n":
                    out.write(line)
        if not rejected:
            self.rejects.unlink()
        self._write_state({**(self._read_state() or {}), "complete": True, "rejected": rejected})
        for part in self._parts():
            part.unlink()
        return rejected

    def _part(self, rank: int) -> Path:
        return _beside(self.out, f".rank{rank}-of-{self.processes.count}.part")

    def _parts(self) -> list[Path]:
        return list(self.out.parent.glob(f"{glob.escape(self.out.name)}.rank*-of-*.part"))


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(out.name + suffix)


def _count_lines(path: Path) -> tuple[int, str]:
    """Number of lines, and a fingerprint of the content: the same size and name would not mean the same rows."""
    rows, digest = 0, blake2b(digest_size=16)
    with open(path, "rb") as file:
        for line in file:
            rows += 1
            digest.update(line)
    return rows, digest.hexdigest()


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is written whole."""
    unfinished = _beside(path, ".unfinished")
    with open(unfinished, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _lock(file: BinaryIO, out: Path) -> None:
    """Two runs at once would mix their lines; a killed run's lock goes with it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with suppress(OSError):  # some network file systems know no locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{out}: another run is writing it; expected one at a time") from error
