"""Output of a long run over a file of lines, written by several processes, that can be resumed after a kill.

Contract: each process appends one line to its part for each of its input lines, in order, so the number of complete
lines in a part says where to resume. OUT is created atomically when all parts are complete, in the order of the input.
Until then there are these files:

- OUT.rank<r>-of-<n>.part: lines for OUT, empty lines, which are dropped, and lines that begin with `REJECTED`, for
- OUT.rejects.jsonl, which is created at the end if there are any;
- OUT.state.json: what the parts were made from. It stays next to the complete OUT.

Each process gets blocks of consecutive lines, because equal images tend to be on consecutive lines.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from himtok_plugin.files.output_file import check_replaceable_rows

from .common_disk import check_common_disk
from .processes import Processes

REJECTED = b"!"  # prefix of lines for the rejects file; JSON cannot begin with it
BLOCK = 64  # consecutive lines for the same process


class OutputPart:
    """The output of one process, open for appending.

    Attributes:
        finished: number of lines that it had when it was opened.
    """

    def __init__(self, file: BinaryIO, finished: int) -> None:
        self.finished = finished
        self._file = file

    def append(self, lines: Iterable[bytes]) -> None:
        """Append lines, given without line ends. They are not lost if this process is killed afterwards."""
        self._file.write(b"".join(line + b"\n" for line in lines))
        self._file.flush()


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, with their line ends."""
    with open(path, "rb") as file:
        yield from file


class ResumableOutput:
    """The output file OUT and the temporary files next to it.

    Args:
        source: the input, a file of lines.
        out: the output file.
        made_by: name -> fingerprint of everything else that the output depends on.
        processes: the processes that write it.
        lines_of: yields the lines of the input, each with a line end.
    """

    def __init__(
        self,
        source: Path,
        out: Path,
        made_by: dict[str, str | int],
        processes: Processes,
        lines_of: Callable[[Path], Iterator[bytes]] = read_lines,
    ) -> None:
        self.source, self.out = source, out
        self._lines_of = lines_of
        self.processes = processes
        self.rows = 0  # lines of the input, known after `begin`
        self._made_by = made_by
        self._state_file = _beside(out, ".state.json")
        self.rejects = _beside(out, ".rejects.jsonl")

    def begin(self, overwrite: bool = False) -> dict[str, Any] | None:
        """Start or resume; all processes call this first.

        Args:
            overwrite: discard earlier output.
        Returns:
            The state if OUT is already complete, otherwise None.
        Raises:
            ValueError: OUT was started from a different input or with other settings, or is a file without state; or
                the processes do not see the same files.
        """
        check_common_disk(self.source, self.out, self.processes)
        state = self.processes.run_on_first(lambda: self._begin(overwrite))
        self.rows = state["rows"]
        return state if state["complete"] else None

    def _begin(self, overwrite: bool) -> dict[str, Any]:
        if self.out.exists() and self.out.samefile(self.source):
            raise ValueError(f"OUT is {str(self.out)!r}, the input itself: expected another file")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        rows, digest = self._count_lines()
        expected = {"input": digest, **self._made_by, "processes": self.processes.count}
        state = None if overwrite else self._read_state()
        if state is not None:
            self._check_unchanged(state, expected)
            if not state["complete"] or self.out.exists():
                return state
        elif self.out.exists() and not overwrite:
            check_replaceable_rows(self.out)
            raise ValueError(f"{self.out}: exists without {self._state_file.name}; pass --overwrite to replace it")
        if not self._state_file.exists():  # with --overwrite, OUT can be anything
            check_replaceable_rows(self.out)
        # Parts without a state cannot be resumed.
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
            raise ValueError(f"{self._state_file}: is not JSON ({error}); pass --overwrite to start again") from error

    def _check_unchanged(self, state: dict[str, Any], expected: dict[str, Any]) -> None:
        for name, value in expected.items():
            if name == "processes" and state["complete"]:
                continue  # a complete result does not depend on it
            if state.get(name) != value:
                raise ValueError(
                    f"{self.out}: was started with {name} {state.get(name)}, got {value}: expected the same, "
                    "or --overwrite to start again"
                )

    def _write_state(self, state: dict[str, Any]) -> None:
        with _open_replacement(self._state_file) as file:
            file.write(json.dumps(state, indent=2).encode() + b"\n")

    @contextmanager
    def part(self, redo_rejected: bool = False) -> Iterator[OutputPart]:
        """Open the part of this process, truncated after its last complete line; a context manager.

        Args:
            redo_rejected: truncate it before its first rejected line.
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

    def count_own_lines(self) -> int:
        """Number of input lines of this process."""
        rounds, rest = divmod(self.rows, BLOCK * self.processes.count)
        return rounds * BLOCK + min(max(rest - BLOCK * self.processes.rank, 0), BLOCK)

    def own_lines(self, finished: int) -> Iterator[tuple[int, bytes]]:
        """Input lines of this process after the first `finished`, with their line numbers, which start at 1."""
        lines = enumerate(self._lines_of(self.source), 1)
        own = ((n, line) for n, line in lines if self._owner(n) == self.processes.rank)
        yield from islice(own, finished, None)

    def _count_lines(self) -> tuple[int, str]:
        """Number of lines of the input, and a fingerprint of its content."""
        rows, digest = 0, blake2b(digest_size=16)
        for line in self._lines_of(self.source):
            rows += 1
            digest.update(line)
        return rows, digest.hexdigest()

    def _owner(self, number: int) -> int:
        return (number - 1) // BLOCK % self.processes.count

    def finish(self) -> int:
        """Wait for all processes, join the parts to OUT, and return the number of rejected lines."""
        self.processes.sum([0])
        return self.processes.run_on_first(self._join)

    def _join(self) -> int:
        rejected = 0
        with ExitStack() as stack:
            parts = [stack.enter_context(open(self._part(rank), "rb")) for rank in range(self.processes.count)]
            rejects = stack.enter_context(_open_replacement(self.rejects))
            out = stack.enter_context(_open_replacement(self.out))
            for number in range(1, self.rows + 1):
                line = parts[self._owner(number)].readline()
                if not line.endswith(b"\n"):
                    raise ValueError(f"{self.source}: row {number} is missing in the parts; has the input changed?")
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


@contextmanager
def _open_replacement(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` when the context ends without an error."""
    unfinished = _beside(path, ".unfinished")
    with open(unfinished, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def _lock(file: BinaryIO, out: Path) -> None:
    """Lock a part against other runs; the lock of a killed process is released by the system."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    with suppress(OSError):  # some network file systems do not support locks
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"{out}: another run is writing it, expected one at a time") from error
