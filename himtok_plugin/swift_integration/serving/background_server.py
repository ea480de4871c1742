"""A server in a child process, behind a page: it loads its model while the page is open, and it ends with the page.

Contract: ms-swift's own `run_deploy` waits until the server answers, also after the server has failed, and leaves it
running if the process of the page is killed. Here `BackgroundServer` starts and ends the child, and says in a sentence
why it has ended. Run as a module, this file is the child. It reads its arguments from its standard input, which stays
open: its end is the end of the page's process, however that ends. What fails is written to the standard output as one
line; everything else that the child prints goes to the standard error.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict
from typing import Any

HOST = "127.0.0.1"  # only the page of this machine is to reach the server
_ANSWER_SECONDS = 1  # the page is gone, and nobody reads the answers in progress
_END_SECONDS = 10.0  # for threads and processes of engines, then the child is killed
_MODULE = "himtok_plugin.swift_integration.serving.background_server"


class BackgroundServer:
    """The server of a page, a context in which it runs.

    Args:
        args: ms-swift's `AppArguments` with the plugin's options.

    Attributes:
        base_url: address of the server's API.
        api_key: key of the server, that of `args` or a new one: other users of the machine can reach the port as well.
    """

    def __init__(self, args: Any):
        self._arguments = _make_deploy_arguments(args)
        self.api_key: str = self._arguments.api_key
        self.base_url = f"http://{HOST}:{self._arguments.port}/v1"
        self._process: subprocess.Popen | None = None
        self._failure: str | None = None

    def __enter__(self) -> BackgroundServer:
        self._process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the page only, which ends the server in order
        )
        try:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the child has failed already; `describe_failure` says so
                pickle.dump(self._arguments, self._process.stdin)
                self._process.stdin.flush()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def describe_failure(self) -> str | None:
        """Return a sentence that says why the server has ended, None while it loads or runs."""
        process = self._process
        if self._failure is None and process is not None and process.poll() is not None:
            assert process.stdout is not None
            reported = process.stdout.read().decode(errors="replace").strip()
            self._failure = reported or f"The model's server has ended {_describe_status(process.returncode)}."
        return self._failure

    def stop(self) -> None:
        """End the server and all of its processes."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
        if os.name == "posix":  # the processes of an engine
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _make_deploy_arguments(args: Any) -> Any:
    """Convert ms-swift's `AppArguments` to `DeployArguments` of a server that only the page is to reach."""
    from dataclasses import fields

    from swift.arguments import DeployArguments

    names = {field.name for field in fields(DeployArguments) if field.init}
    values = {name: value for name, value in asdict(args).items() if name in names and value is not None}
    own = {
        "host": HOST,
        "port": 0,  # any free one: two pages that start at the same time would find the same
        "api_key": args.api_key or secrets.token_urlsafe(),
        "shutdown_seconds": min(args.shutdown_seconds, _ANSWER_SECONDS),
        "log_level": "warning" if args.log_level == "info" else args.log_level,  # "info" logs the server's address
        "log_interval": -1,  # no statistics
    }
    for name in ("ssl_keyfile", "ssl_certfile"):  # of the page
        values.pop(name, None)
    return DeployArguments(**{**values, **own})


def _describe_status(status: int) -> str:
    if status == -signal.SIGKILL:
        return "by SIGKILL: the machine may have too little memory for the model"
    return f"by signal {-status}" if status < 0 else f"with status {status}: the terminal shows why"


def main() -> None:
    """Run the server of the arguments in standard input."""
    from himtok_plugin import startup

    report = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    startup.activate_inherited()
    try:
        with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as pipe:
            arguments = pickle.load(pipe)
        threading.Thread(target=_end_with_page, args=[sys.stdin.fileno()], daemon=True).start()
        from swift.pipelines.infer.deploy import deploy_main

        arguments._import_external_plugins()
        deploy_main(arguments)
    except Exception as error:
        if not isinstance(error, ValueError):
            traceback.print_exc()
        report.write(f"The model could not be loaded: {_describe(error)}")
        report.close()
        sys.exit(1)


def _describe(error: Exception) -> str:
    from .chat_requests import shorten_reason

    return " ".join(str(error).split()) if isinstance(error, ValueError) else shorten_reason(error)


def _end_with_page(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_END_SECONDS)
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
