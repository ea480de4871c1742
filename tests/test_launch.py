"""`python -m himtok_plugin.launch`: an ms-swift command with this plugin, without any start-up hook."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

from himtok_plugin import launch
from himtok_plugin.active_plugins import ACTIVE_PLUGINS_VARIABLE
from himtok_plugin.data.generated.scenes import write_rows
from himtok_plugin.resources import default_checkpoint


def python(*arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if name != ACTIVE_PLUGINS_VARIABLE}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**clean, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )


def prepared(*arguments, **environment):
    """What `prepare_command` returns, or the command line that it leaves for the command, in a process of its own."""
    code = (
        "import json, sys; from himtok_plugin.launch import prepare_command\n"
        f"result = prepare_command({list(arguments)!r})\n"
        "print(json.dumps(result if isinstance(result, list) else sys.argv))"
    )
    child = python("-c", code, **environment)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def test_command_gets_the_plugin_and_its_file():
    script, *arguments = prepared("sft", "--model", "m")
    assert script.endswith(os.path.join("swift", "cli", "sft.py"))
    plugin_file = str(ROOT / "himtok_plugin" / "plugin" / "himtok.py")
    assert arguments == ["--model", "m", "--plugin", "himtok", "--external_plugins", plugin_file]


def test_yaml_and_plugin_flag_are_read_as_swift_reads_them(tmp_path):
    config = tmp_path / "stage.yaml"
    config.write_text("model: m\nplugin: [himtok]\n")
    assert prepared("sft", str(config), "--seed", "1")[1:7] == ["--model", "m", "--plugin", "himtok", "--seed", "1"]


def test_several_processes_are_started_by_torchrun_with_the_same_module():
    command = prepared("sft", "--model", "m", NPROC_PER_NODE="2")
    assert command[1:] == [
        *["-m", "torch.distributed.run", "--nproc_per_node", "2"],
        *["-m", launch.MODULE, "sft", "--model", "m"],
    ]
    assert launch.MODULE == launch.__name__


def test_a_process_of_torchrun_runs_the_command_itself():
    assert prepared("sft", "--model", "m", NPROC_PER_NODE="2", LOCAL_RANK="0")[1:3] == ["--model", "m"]


@pytest.mark.parametrize("arguments", [(), ("nope",)])
def test_unknown_command_is_one_line_and_exit_status_2(arguments):
    child = python("-m", launch.MODULE, *arguments)
    assert child.returncode == 2 and child.stdout == ""
    assert child.stderr.splitlines()[-1].startswith("error: command: got ")


def test_python_dash_m_of_ms_swift_takes_the_plugin_flag(tmp_path):
    lines = (ROOT / "himtok_plugin_startup.pth").read_text(encoding="utf-8").splitlines()
    hook = next(line for line in lines if line.startswith("import "))
    (tmp_path / "sitecustomize.py").write_text(hook + "\n")  # wherever and whether the package is installed
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    child = python("-m", "swift.cli.infer", "--plugin", "himtok", "--help", PYTHONPATH=path)
    assert child.returncode == 0, child.stderr[-2000:]
    assert "--mask_decoding" in child.stdout


def test_native_flag_for_external_plugins_is_refused_in_one_line():
    plugin_file = str(ROOT / "himtok_plugin" / "plugin" / "himtok.py")
    script = importlib.util.find_spec("swift.cli.infer").origin
    child = python(script, "--external_plugins", plugin_file, "--model", str(default_checkpoint()))
    assert child.returncode == 2
    assert child.stderr.splitlines()[-1].startswith(
        "error: --external_plugins: got the file of the plugin himtok alone"
    )


def test_inference_runs_from_a_source_tree(tmp_path):
    rows = write_rows(tmp_path / "scenes", 2, seed=5)
    out = tmp_path / "out.jsonl"
    child = python(
        *["-m", launch.MODULE, "infer", "--model", "default", "--val_dataset", rows, "--result_path", out],
        *["--temperature", "0", "--stream", "false", "--max_new_tokens", "96"],
    )
    assert child.returncode == 0, child.stderr[-2000:]
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(results) == 2 and all("masks" in result for result in results)
