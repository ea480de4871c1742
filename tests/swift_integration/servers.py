"""Servers on localhost, mostly `swift deploy --plugin himtok`; images for requests; a gate that limits answers."""

import base64
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image
from runs import flags

MODEL, KEY = "segmenter", "secret"  # of the server that tests share
MAX_PIXELS, MAX_MASKS, MAX_IMAGES, MAX_REQUEST_PIXELS = 10_000, 3, 4, 25_000
START_SECONDS = 180  # ten on an idle machine


@contextmanager
def deployed(root: Path, start_seconds: float = START_SECONDS, **options):
    """Address of a server, `http://127.0.0.1:PORT/v1`; its log is `root/log.txt`."""
    port = find_free_port()
    defaults = {"plugin": "himtok", "host": "127.0.0.1", "port": port, "max_batch_size": 4, "verbose": False}
    log = root / "log.txt"
    with started("deploy", *flags(**{**defaults, **options}), cwd=root, log=log) as process:
        yield wait_until_healthy(port, process, log, start_seconds)


@contextmanager
def deployed_here(**options):
    """Address of a server in a thread of this process, and its `SwiftDeploy`: without ten seconds of imports."""
    import uvicorn
    from swift.pipelines.infer.deploy import SwiftDeploy

    server = SwiftDeploy(flags(**{"max_batch_size": 4, "verbose": False, "log_interval": -1, **options}))
    server.jsonl_writer = None  # as `SwiftDeploy.run` sets it
    port = find_free_port()
    http = uvicorn.Server(uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=http.run, daemon=True)
    thread.start()
    try:
        while not http.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/v1", server
    finally:
        http.should_exit = True
        thread.join(timeout=30)


def find_free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until_healthy(port: int, process: subprocess.Popen, log: Path, seconds: float) -> str:
    """Address of a server that `started` runs, once it answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return f"http://127.0.0.1:{port}/v1"
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.2)


@contextmanager
def started(*argv, cwd: Path, log: Path, program: str = "swift", **environment):
    """Run a command of this Python environment until the block ends; `environment` adds variables."""
    clean = {name: value for name, value in os.environ.items() if name != "HIMTOK_ACTIVE_PLUGINS"}
    with open(log, "w") as out:
        process = subprocess.Popen(
            [Path(sys.executable).with_name(program), *map(str, argv)],
            env={**clean, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment},
            cwd=cwd,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # `swift` starts another process, which must end with it
        )
    try:
        yield process
    finally:
        end(process, signal.SIGTERM)


def end(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a command of `started` and to all its child processes."""
    if process.poll() is None:
        os.killpg(process.pid, number)
        process.wait(timeout=30)


def data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


def png_header(h: int, w: int) -> bytes:
    """A PNG file that claims to have any size, without its pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png(h: int, w: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (h, w, 3), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


class Gate(ThreadingHTTPServer):
    """Passes requests on to a server.

    Attributes:
        questions: text of every chat request, in order.
        refused: a request with this in its text gets status 400.
        stuck: set when all requests of `let_through` are answered and another one waits.
    """

    daemon_threads = True

    def __init__(self, target: str):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.questions: list[str] = []
        self.refused: str | None = None
        self.stuck = threading.Event()
        self._left: int | None = None
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def let_through(self, requests: int | None) -> None:
        """Pass this number of further requests and make the others wait; None: pass all."""
        with self._lock:
            self.questions.clear()
            self.stuck.clear()
            self._left = requests

    def admit(self, question: str) -> bool:
        with self._lock:
            self.questions.append(question)
            if self._left is None:
                return True
            self._left -= 1
            return self._left >= 0

    @contextmanager
    def serving(self):
        thread = threading.Thread(target=self.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Gate

    def do_GET(self):
        self._pass_on(None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        messages = json.loads(body)["messages"]
        question = json.dumps([part for m in messages for part in m["content"] if "text" in part], ensure_ascii=False)
        if not self.server.admit(question):
            self.server.stuck.set()
            self.rfile.read()  # until the client has disconnected
        elif self.server.refused is not None and self.server.refused in question:
            self._answer(400, b'{"message": "refused"}')
        else:
            self._pass_on(body)

    def _pass_on(self, body):
        headers = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        path = self.path.removeprefix("/v1")
        try:
            with urllib.request.urlopen(urllib.request.Request(self.server.target + path, body, headers)) as answer:
                self._answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            self._answer(error.code, error.read())

    def _answer(self, status: int, content: bytes):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass
