"""SIGTERM to the process of `swift deploy` ends the server after the requests in progress."""

import json
import signal
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from paths import ROOT
from runs import flags
from servers import find_free_port, started, wait_until_healthy

HOOK = next(
    line for line in (ROOT / "himtok_plugin_startup.pth").read_text().splitlines() if line.startswith("import ")
)


def ask(address: str, words: int) -> int:
    content = " ".join(["Hello."] * words)
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": 200, "temperature": 2.0}
    data = json.dumps({**body, "n": 4}).encode()
    request = urllib.request.Request(address + "/chat/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return len(json.loads(answer.read())["choices"])


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_sigterm_to_swift_deploy_ends_the_server_after_its_answers(stage_two, tmp_path):
    # `swift` as pip installs it, and the hook as Python runs it, also where an older one is installed.
    script = tmp_path / "swift"
    script.write_text(f"{HOOK}\nimport sys\nfrom swift.cli.main import cli_main\nsys.exit(cli_main())\n")
    port = find_free_port()
    options = flags(model=stage_two[1], plugin="himtok", served_model_name="m", verbose=False, port=port)
    command = [script, "deploy", "--host", "127.0.0.1", *options]
    with started(*command, cwd=tmp_path, log=tmp_path / "log.txt", program="python") as process:
        address = wait_until_healthy(port, process, tmp_path / "log.txt", 180)
        with ThreadPoolExecutor(4) as pool:
            answers = [pool.submit(ask, address, i) for i in range(1, 5)]
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            assert [answer.result() for answer in answers] == [4] * 4
        assert process.wait(timeout=30) == 0
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(address, timeout=5)
