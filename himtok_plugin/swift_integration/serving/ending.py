"""The end of a server: after SIGTERM it takes no further requests, answers those in progress, and exits.

uvicorn does this; it waits without limit unless it gets one, and ends the process by the signal, so that other
processes of an engine could survive. `swift` itself starts commands as child processes and does not pass signals on:
`startup.py` replaces it by its child.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

_EXIT_SECONDS = 5.0  # for threads and child processes, after the last answer


@contextmanager
def end_in_time(deploy: ModuleType, seconds: int) -> Iterator[None]:
    """Limit the time that the server in this context takes to end.

    Args:
        deploy: ms-swift's module, which calls `uvicorn.run`.
        seconds: for the requests in progress.
    """
    module: Any = deploy
    uvicorn = module.uvicorn
    in_main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _exit) if in_main_thread else None
    module.uvicorn = SimpleNamespace(run=partial(uvicorn.run, timeout_graceful_shutdown=seconds))
    try:
        yield
    finally:
        module.uvicorn = uvicorn
        if in_main_thread:
            signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: Any) -> None:
    """Exit with status 0, even if a thread does not end; uvicorn sends the signal again when it has shut down."""
    watch = threading.Timer(_EXIT_SECONDS, os._exit, [0])
    watch.daemon = True
    watch.start()
    sys.exit(0)
