"""Every Python and shell block of the pages runs as it stands, or says in its first line why it does not."""

import re
import subprocess
import sys

import pytest
from pages import blocks
from shell_commands import parse_block, run_block

PYTHON, SHELL = blocks("python"), blocks("bash")
# Commands that take more than a minute.
SLOW = ("swift rlhf", "swift eval", "--quant_method", "bench step")


def slowly(block):
    marks = [pytest.mark.slow] if block.is_run and any(part in block.text for part in SLOW) else []
    return pytest.param(block, id=block.name, marks=marks)


def test_blocks_that_are_not_run_say_why():
    for block in [*PYTHON, *SHELL]:
        assert block.is_run or len(block.text.splitlines()[0].partition(": ")[2]) > 10, block.name


@pytest.mark.parametrize("block", [slowly(block) for block in SHELL if block.is_run])
def test_shell_block_runs(block, workspace):
    run_block(block.text)


@pytest.mark.parametrize("block", [slowly(block) for block in SHELL if block.is_parsed])
def test_commands_of_the_shell_block_are_parsed(block, workspace):
    parse_block(block.text)


@pytest.mark.parametrize("block", [slowly(block) for block in PYTHON if block.is_run and "openai" not in block.text])
def test_python_block_runs(block, workspace):
    done = subprocess.run([sys.executable, "-c", block.text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_client_talks_to_the_server_that_the_page_starts(workspace):
    from servers import deployed

    (client,) = (block for block in PYTHON if block.is_run and "openai" in block.text)
    starts = (block for block in SHELL if "swift deploy" in block.text and block.page == client.page)
    (start,) = (block for block in starts if "--infer_backend" not in block.text)
    options = dict(re.findall(r"--(\w+) (\S+)", start.text))
    options.pop("host")
    with deployed(workspace, torch_dtype="float32", **options) as server:
        code = client.text.replace("http://127.0.0.1:8000/v1", server)
        assert code != client.text
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
