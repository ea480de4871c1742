"""Checks, before hours of work, that all processes of a run see the same files.

Each process of a run on several machines writes a part of the output, and process 0 joins the parts at the end.
"""

from __future__ import annotations

import secrets
import socket
import time
from pathlib import Path

from .processes import Processes

PATIENCE_SECONDS = 10.0  # a network file system can show a new file later on other machines
_PAUSE_SECONDS = 0.2


def check_common_disk(source: Path, out: Path, processes: Processes) -> None:
    """Check that all processes see the folder of the output and the same input; all processes call this.

    Args:
        source: the input.
        out: the output, whose folder process 0 creates. It writes a file with a random name there, and removes it.
        processes: the processes of the run.
    Raises:
        ValueError: a process sees another folder or another input than process 0.
        OSError: process 0 cannot read the input or write the folder.
    """
    if processes.count == 1:
        return
    size, probe = processes.run_on_first(lambda: (source.stat().st_size, _write_probe(out)))
    try:
        views = processes.gather((socket.gethostname(), _get_size(source), _sees(probe)))
    finally:
        if processes.rank == 0:
            probe.unlink(missing_ok=True)
    first = views[0][0]
    for host, own_size, sees in views:
        if not sees:
            raise ValueError(
                f"OUT: got {str(out)!r}, which is another folder on {host} than on {first}, expected one on a disk "
                "that all machines share; otherwise run on one machine, or tokenize a part of the input on each"
            )
        if own_size != size:
            raise ValueError(
                f"IN: got {str(source)!r} with {own_size or 'no'} bytes on {host}, expected {size} bytes as on {first}"
            )


def _write_probe(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    probe = out.with_name(f"{out.name}.{secrets.token_hex(8)}.probe")
    probe.touch()
    return probe


def _sees(probe: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not probe.is_file():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_SECONDS)
    return True


def _get_size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
