"""`swift app`: the page opens while its server loads, shows what failed, and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from paths import ROOT
from servers import find_free_port, started

from himtok_plugin.swift_integration.serving import background_server

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
HOOK = next(
    line for line in (ROOT / "himtok_plugin_startup.pth").read_text().splitlines() if line.startswith("import ")
)


def children_of(session_of: int) -> list[int]:
    """Ids of the processes that the process has started."""
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(session_of)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_page_opens_while_its_model_loads_and_sigterm_leaves_no_process(tmp_path):
    pytest.importorskip("gradio", reason="the page is built with gradio: pip install '.[app]'")
    # `swift` as pip installs it, and the hook as Python runs it, also where an older one is installed.
    script = tmp_path / "swift"
    script.write_text(f"{HOOK}\nimport sys\nfrom swift.cli.main import cli_main\nsys.exit(cli_main())\n")
    port, log = find_free_port(), tmp_path / "log.txt"
    flags = ["--plugin", "himtok", "--model", "default", "--server_port", port, "--studio_title", "Masks of today"]
    with started(script, "app", *flags, cwd=tmp_path, log=log, program="python") as process:
        end = time.monotonic() + 180
        while "The page is at" not in log.read_text():
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.2)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            assert b"Masks of today" in page.read()
        children = children_of(process.pid)
        assert children  # the server, which loads
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert not [pid for pid in children if is_running(pid)]


@pytest.fixture
def fake_child(monkeypatch, tmp_path):
    """Let `BackgroundServer` start a small program instead of a server."""

    def use(program: str) -> background_server.BackgroundServer:
        (tmp_path / "fake_server.py").write_text(program)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        monkeypatch.setattr(background_server, "_MODULE", "fake_server")
        arguments = SimpleNamespace(api_key="k", port=1)
        monkeypatch.setattr(background_server, "_make_deploy_arguments", lambda args: arguments)
        return background_server.BackgroundServer(None)

    return use


def wait_for_failure(server: background_server.BackgroundServer) -> str:
    end = time.monotonic() + 60
    while (failure := server.describe_failure()) is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    return failure


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("print('The model could not be loaded: no.', end='')", "The model could not be loaded: no."),
        ("raise SystemExit(3)", "The model's server has ended with status 3: the terminal shows why."),
        (
            "import os; os.kill(os.getpid(), 9)",
            "The model's server has ended by SIGKILL: the machine may have too little memory for the model.",
        ),
    ],
)
def test_server_that_ends_is_a_sentence(fake_child, program, sentence):
    with fake_child(program) as server:
        assert wait_for_failure(server) == sentence


def test_server_that_ignores_sigterm_is_killed_with_what_it_has_started(fake_child, monkeypatch, tmp_path):
    monkeypatch.setattr(background_server, "_END_SECONDS", 0.5)
    program = (
        "import json, os, pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"path = pathlib.Path({str(tmp_path / 'ids.json')!r})\n"
        "path.with_suffix('.part').write_text(json.dumps([os.getpid(), other.pid]))\n"
        "path.with_suffix('.part').rename(path)\n"
        "time.sleep(600)\n"
    )
    with fake_child(program):
        while not (tmp_path / "ids.json").exists():
            time.sleep(0.05)
    end = time.monotonic() + 5
    while any(is_running(pid) for pid in json.loads((tmp_path / "ids.json").read_text())):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_child_reports_what_it_cannot_load_and_ends():
    child = subprocess.run(
        [sys.executable, "-m", background_server._MODULE], input=b"no arguments", capture_output=True, timeout=120
    )
    assert child.returncode == 1
    assert child.stdout.startswith(b"The model could not be loaded: UnpicklingError: ")
