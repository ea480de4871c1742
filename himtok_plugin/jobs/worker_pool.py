"""Work on many items in processes of their own, in order, with few of them in memory.

Contract: results come in the order of the items, whatever the number of processes, and only so many are worked on ahead
as keep the processes busy. Does not know the work.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 3  # items per process: the one it is at, and what it goes on with

_function: Callable[[Any], Any] | None = None  # of this process, set when it starts


def usable_cores() -> int:
    """Cores that this process may run on, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """As many processes as cores; none beside this one where there is but one."""
    cores = usable_cores()
    return cores if cores > 1 else 0


def map_ordered(function: Callable[[T], R], items: Iterable[T], workers: int, items_ahead: int = AHEAD) -> Iterator[R]:
    """`function` of each item, by `workers` processes; 0: this one does.

    Args:
        function: picklable; it is sent to each process once, so it may carry what it needs.
        items_ahead: per process, that are worked on or have been before their result is asked for: bounds memory.
    Raises:
        ChildProcessError: a process was killed.
    """
    if workers < 0:
        raise ValueError(f"num_workers is {workers}: expected at least 0")
    if workers == 0:
        yield from map(function, items)
        return
    # Spawned, not forked: a fork of a process with threads and a device may hang, and these start quickly.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_begin, initargs=(function,)) as pool:
        ahead: deque = deque()
        try:
            for item in items:
                ahead.append(pool.submit(_call, item))
                if len(ahead) >= workers * items_ahead:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a working process was killed, as happens when memory runs out: try fewer num_workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(function: Callable[[Any], Any]) -> None:
    global _function
    _follow_parent()
    _function = function


def _follow_parent() -> None:
    """End this process with its parent, which it would wait for when that was killed, and not before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent is the one to act on it
    parent = multiprocessing.parent_process()

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _call(item: Any) -> Any:
    return _function(item)
