"""A page on a port of this machine, until a signal ends it.

Contract: what is wrong with the address is a `ValueError` before anything is loaded. Ctrl-C, SIGTERM and SIGHUP leave
the context `until_signal` in order, so that what the page has started ends with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio

_WATCH_SECONDS = 0.2
_REQUESTS_AT_A_TIME = 16  # of all tabs; the server answers several together
_PORTS_TO_TRY = 100
_ENDING_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # not all systems have all of them


@dataclass(frozen=True)
class PageAddress:
    """Where a page is to be reached.

    Attributes:
        server_name: name or address of this machine to listen on; 0.0.0.0 for all of its addresses.
        server_port: port; 0 for any free one.
        share: whether gradio's public tunnel leads to the page as well.
        ssl_keyfile, ssl_certfile: key and certificate for https.
    """

    server_name: str = "127.0.0.1"
    server_port: int = 7860
    share: bool = False
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None

    def check(self) -> None:
        """Raise ValueError if the page cannot listen there."""
        if not 0 <= self.server_port <= 65535:
            raise ValueError(f"server_port: got {self.server_port}, expected a port from 0 to 65535")
        error = _try_to_listen(self.server_name, self.server_port)
        if error is None:
            return
        if error.errno == errno.EADDRINUSE:
            raise ValueError(self._describe_use()) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ValueError(f"server_port: got {self.server_port}, expected one that this user may use") from error
        raise ValueError(
            f"server_name: got {self.server_name!r}, expected an address of this machine ({error.strerror or error})"
        ) from error

    def _describe_use(self) -> str:
        ports = range(self.server_port + 1, min(self.server_port + _PORTS_TO_TRY, 65536))
        free = next((port for port in ports if _try_to_listen(self.server_name, port) is None), None)
        hint = "" if free is None else f", such as --server_port {free}"
        return f"server_port: got {self.server_port}, which another program uses, expected a free port{hint}"


def _try_to_listen(name: str, port: int) -> OSError | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(name.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as listener:
            if os.name == "posix":  # a page that has just ended leaves connections; elsewhere the option means another
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
    except OSError as error:
        return error
    return None


class _Ended(BaseException):
    """A signal asks for the end."""


@contextlib.contextmanager
def until_signal() -> Iterator[None]:
    """Leave this context at the first Ctrl-C, SIGTERM or SIGHUP; later ones do not disturb what ends then."""
    numbers = [getattr(signal, name) for name in _ENDING_SIGNALS if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise _Ended

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    except _Ended:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def host_page(
    page: gradio.Blocks, address: PageAddress, max_file_bytes: int, watch: Callable[[], object] = lambda: None
) -> None:
    """Serve a page until a signal or an error ends it.

    Args:
        page: what to serve.
        address: where.
        max_file_bytes: largest file that a browser can upload.
        watch: called five times a second.
    Raises:
        ValueError: the page cannot listen at the address.
    """
    page.queue(default_concurrency_limit=_REQUESTS_AT_A_TIME)
    try:
        _, local, public = page.launch(
            server_name=address.server_name,
            server_port=address.server_port or _find_free_port(),
            share=address.share,
            ssl_keyfile=address.ssl_keyfile,
            ssl_certfile=address.ssl_certfile,
            ssl_verify=False,  # gradio asks its own address, whose certificate may be for another name
            max_file_size=max_file_bytes,
            prevent_thread_lock=True,
            quiet=True,
            show_api=False,
            ssr_mode=False,  # no further process
        )
    except OSError as error:  # somebody else was faster
        address.check()
        raise ValueError(f"server_port: got {address.server_port}, expected one to listen on ({error})") from error
    try:
        print(f"The page is at {' and '.join(url for url in (local, public) if url)}", flush=True)
        while True:
            watch()
            time.sleep(_WATCH_SECONDS)
    finally:
        page.close(verbose=False)


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
