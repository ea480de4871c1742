"""Lists the files below a folder, also behind links, without an endless walk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

OnError = Callable[[OSError], None]
OnFolder = Callable[[Path], None]
_HIDDEN = (".", "__MACOSX")  # beginnings of folders and files that programs keep for themselves


def walk_files(folder: Path, on_error: OnError | None = None, on_folder: OnFolder | None = None) -> Iterator[Path]:
    """Yield all files below a folder, sorted by folder and name; hidden ones are left out.

    Links to folders are followed. A folder that several links lead to, or that contains itself, is listed once.

    Args:
        on_error: called with the error of each folder that cannot be listed.
        on_folder: called with each folder below `folder`.
    """
    seen: set[tuple[int, int]] = set()
    for where, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        try:
            status = os.stat(where)
        except OSError as error:
            if on_error is not None:
                on_error(error)
            folders.clear()
            continue
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(_HIDDEN))
        if on_folder is not None:
            for name in folders:
                on_folder(Path(where, name))
        for name in sorted(names):
            if not name.startswith(_HIDDEN):
                yield Path(where, name)
