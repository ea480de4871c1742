"""Files that are written under a temporary name and renamed when they are complete.

Contract: imports the standard library only.
"""

from __future__ import annotations

import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".unfinished"  # suffix of temporary files


def remove_unfinished(path: Path) -> None:
    """Remove temporary files of `atomic_write` that a killed process has left; no other one may be writing `path`."""
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*{UNFINISHED}"):
        leftover.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path, empty: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file that is renamed to `path` when the block ends without an error.

    Its name is new, so that several processes can write the same file: the last one that ends has written it.

    Args:
        empty: whether an empty file is kept; if not, `path` is deleted instead.
    """
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with open(unfinished, "xb") as file:
            yield file
        if empty or unfinished.stat().st_size:
            os.replace(unfinished, path)
        else:
            path.unlink(missing_ok=True)
    finally:
        unfinished.unlink(missing_ok=True)
