"""Applies a function to many items in worker processes, in order, with few items in memory at a time."""

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
ITEMS_AHEAD = 3  # per worker: the current one and the next ones

_function: Callable[[Any], Any] | None = None  # of this worker, set when it starts


def count_usable_cores() -> int:
    """Number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_num_workers() -> int:
    """One worker per usable core; 0 (no worker processes) if there is only one core."""
    cores = count_usable_cores()
    return cores if cores > 1 else 0


def map_ordered(
    function: Callable[[T], R], items: Iterable[T], workers: int, items_ahead: int = ITEMS_AHEAD
) -> Iterator[R]:
    """Apply a function to each item and yield the results in the order of the items.

    Args:
        function: picklable; it is sent to each worker once, so it may hold large objects.
        items: read as they are needed.
        workers: number of worker processes; 0: apply the function in this process.
        items_ahead: items per worker that are submitted before their results are needed, which limits memory.
    Raises:
        ChildProcessError: a worker was killed.
        ValueError: the number of workers is negative.
    """
    if workers < 0:
        raise ValueError(f"num_workers is {workers}: expected at least 0")
    if workers == 0:
        yield from map(function, items)
        return
    # Workers are spawned, because forking a process with threads and a device may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_initialize_worker, initargs=(function,)) as pool:
        ahead: deque = deque()
        try:
            for item in items:
                ahead.append(pool.submit(_apply, item))
                if len(ahead) >= workers * items_ahead:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            raise ChildProcessError(
                "a worker process was killed, perhaps because memory ran out: try fewer num_workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _initialize_worker(function: Callable[[Any], Any]) -> None:
    global _function
    _exit_with_parent()
    _function = function


def _exit_with_parent() -> None:
    """Exit when the parent process ends; without this, a worker would wait forever for a killed parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the parent handles it
    parent = multiprocessing.parent_process()
    assert parent is not None  # this process is a worker

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _apply(item: Any) -> Any:
    assert _function is not None  # set by _initialize_worker
    return _function(item)
