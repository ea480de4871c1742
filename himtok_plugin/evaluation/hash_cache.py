"""Hashes of large files, remembered by what the file system says about the files.

Contract: `hash_files` returns the same as hashing the content each time. A remembered hash is used only if path, size,
inode, and the times of the last change of content and of inode are those of all files when they were hashed. Hashes are
remembered in this process and in the user's cache folder (`$XDG_CACHE_HOME`, otherwise `~/.cache`), never beside the
files. A cache folder that cannot be written only costs time; several processes may write it at once.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

FOLDER = Path("himtok_plugin", "hashes")
# A file that was written this recently can change once more without another time: file systems count in steps of up to
# two seconds.
UNSETTLED_NS = 2_000_000_000
_HASH = re.compile(r"[0-9a-f]+")

_remembered: dict[str, str] = {}  # of this process


def hash_files(named: Sequence[tuple[str, Path]], compute: Callable[[], str]) -> str:
    """Return the hash of files, from the cache if none of them has changed.

    Args:
        named: all files that the hash depends on, each with the name by which it does.
        compute: reads them and returns their hash as hexadecimal digits.
    """
    state = _describe(named)
    key = blake2b(json.dumps(state).encode(), digest_size=16).hexdigest()
    known = _remembered.get(key) or _read(key)
    if known is None:
        begin = time.time_ns()
        known = compute()
        newest = max((max(entry[-2:]) for entry in state), default=0)
        if _describe(named) != state or newest > begin - UNSETTLED_NS:
            return known  # changed meanwhile, or may change again without another time
        _write(key, known)
    _remembered[key] = known
    return known


def _describe(named: Sequence[tuple[str, Path]]) -> list[list]:
    """Return name, path, size, device, inode, and times of the last change of content and inode, of each file."""
    states = [(name, path, path.stat()) for name, path in named]
    return [
        [name, str(path.absolute()), s.st_size, s.st_dev, s.st_ino, s.st_mtime_ns, s.st_ctime_ns]
        for name, path, s in states
    ]


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / FOLDER


def _read(key: str) -> str | None:
    with suppress(OSError, ValueError, RuntimeError):  # RuntimeError: the user has no home
        text = (_folder() / key).read_text(encoding="ascii")
        return text if _HASH.fullmatch(text) else None
    return None


def _write(key: str, value: str) -> None:
    """Write a hash under a temporary name and rename it, so that no reader sees half of it."""
    with suppress(OSError, RuntimeError):
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, prefix=f"{key}.", delete=False, encoding="ascii") as file:
            file.write(value)
        os.replace(file.name, folder / key)
