"""A lock that one process at a time holds, also among several runs and, on a common disk, among several machines.

Contract: the operating system releases the lock of a process that ends, however it ends. On a file system without
locks, `filelock` writes a marker instead, or no one waits: what the lock protects must stay right without it, only done
more than once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

POLL_SECONDS = 0.5
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # the file system has none


@contextmanager
def hold_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock of a file while the context lasts; the context has whether the file system has locks.

    Args:
        path: the lock's file, which stays; its folder exists.
        on_wait: called once if another process holds the lock.
    Raises:
        OSError: the file cannot be created.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(poll_interval=POLL_SECONDS)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    except NotImplementedError:  # what older versions of filelock raise then
        pass
    try:
        yield lock.is_locked
    finally:
        lock.release()
