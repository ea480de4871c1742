"""`python -m himtok_plugin.launch`: an ms-swift command with this plugin, without any start-up hook."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from paths import ROOT
from wheels import build, copy_source, run_outside

from himtok_plugin import launch
from himtok_plugin.active_plugins import ACTIVE_PLUGINS_VARIABLE
from himtok_plugin.data.generated.scenes import write_rows
from himtok_plugin.resources import default_checkpoint

PLUGIN_FILE = str(ROOT / "himtok_plugin" / "plugin" / "himtok.py")


def python(*arguments, interpreter=sys.executable, cwd=None, **environment):
    clean = {name: value for name, value in os.environ.items() if name != ACTIVE_PLUGINS_VARIABLE}
    return subprocess.run(
        [interpreter, *arguments],
        env={**clean, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="module")
def hook(tmp_path_factory):
    """A PYTHONPATH by which Python runs the start-up hook, wherever and whether the package is installed."""
    lines = (ROOT / "himtok_plugin_startup.pth").read_text(encoding="utf-8").splitlines()
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(next(line for line in lines if line.startswith("import ")) + "\n")
    return os.pathsep.join([str(folder), str(ROOT)])


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Run Python in an environment with the packages of this one, but without its `.pth` files: no start-up hook."""
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", with_pip=False, symlinks=os.name != "nt")
    interpreter = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    base = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    site_packages = Path(sysconfig.get_path("purelib", vars=base))
    packages = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (site_packages / "packages.pth").write_text("\n".join(packages))

    def run(pythonpath, *arguments, **environment):
        environment = {"PYTHONPATH": pythonpath, "XDG_CACHE_HOME": str(folder / "cache"), **environment}
        return python(*arguments, interpreter=interpreter, cwd=folder, **environment)

    return run


@pytest.fixture(scope="module")
def source_tree():
    return str(ROOT)


@pytest.fixture(scope="module")
def zip_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return str(build(copy_source(folder / "himtok"), "build_wheel", folder))


@pytest.fixture(scope="module")
def target_folder(zip_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-index"]
    run_outside([*pip, "--target", folder, zip_file])
    return str(folder)


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


def test_python_dash_m_of_ms_swift_takes_the_plugin_flag(hook):
    child = python("-m", "swift.cli.infer", "--plugin", "himtok", "--help", PYTHONPATH=hook)
    assert child.returncode == 0, child.stderr[-2000:]
    assert "--mask_decoding" in child.stdout


@pytest.mark.parametrize(
    ("verb", "environment"),
    [("pt", {}), ("sft", {}), ("sft", {"NPROC_PER_NODE": "2"}), ("rlhf", {}), ("export", {})],
)
def test_megatron_refuses_the_plugin_in_one_line(hook, verb, environment, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("plugin: himtok\n")
    child = python("-m", "swift.cli._megatron.main", verb, config, PYTHONPATH=hook, **environment)
    assert child.returncode == 2
    errors = [line for line in child.stderr.splitlines() if "error" in line.lower()]
    assert len(errors) == 1 and errors[0].startswith("error: --plugin: got himtok with megatron")


def test_native_flag_with_the_plugin_file_adds_the_options_where_the_hook_is_installed(hook):
    child = python("-m", "swift.cli.infer", "--external_plugins", PLUGIN_FILE, "--help", PYTHONPATH=hook)
    assert child.returncode == 0, child.stderr[-2000:]
    assert "--mask_decoding" in child.stdout


def test_native_flag_with_the_plugin_file_is_refused_in_one_line_without_the_hook(elsewhere):
    script = importlib.util.find_spec("swift.cli.infer").origin
    child = elsewhere(str(ROOT), script, "--external_plugins", PLUGIN_FILE, "--model", default_checkpoint())
    assert child.returncode == 2
    assert child.stderr.splitlines()[-1].startswith("error: --external_plugins: got the file of the plugin himtok")
    assert "expected python -m himtok_plugin.launch infer instead" in child.stderr.splitlines()[-1]


@pytest.mark.parametrize("found_in", ["zip_file", "target_folder"])
def test_command_gets_a_plugin_file_on_disk(found_in, request, elsewhere):
    code = "import sys; from himtok_plugin.launch import prepare_command; prepare_command(['sft']); print(sys.argv[-1])"
    child = elsewhere(request.getfixturevalue(found_in), "-c", code)
    assert child.returncode == 0, child.stderr
    file = Path(child.stdout.splitlines()[-1])
    assert file.is_file() and file.parts[-3:] == ("himtok_plugin", "plugin", "himtok.py")
    assert [path.name for path in file.parent.iterdir() if path.name != "__pycache__"] == ["himtok.py"]


@pytest.mark.parametrize("found_in", ["zip_file", "target_folder"])
def test_shipped_files_are_found(found_in, request, elsewhere):
    code = (
        "from himtok_plugin import resources, __file__\n"
        "from himtok_plugin.data.prompts import Prompts\n"
        "from himtok_plugin.pages.environment import page_environment\n"
        "Prompts.load(); page_environment().get_template('base.html.j2')\n"
        "print(__file__)\n"
        "print(resources.config_path('stage1_tiny_full').is_file())\n"
        "print((resources.default_checkpoint() / 'model.safetensors').stat().st_size)\n"
        "print((resources.default_mask_tokenizer() / 'config.json').is_file())\n"
    )
    folder = request.getfixturevalue(found_in)
    child = elsewhere(folder, "-c", code)
    assert child.returncode == 0, child.stderr
    size = (default_checkpoint() / "model.safetensors").stat().st_size
    assert child.stdout.splitlines() == [str(Path(folder, "himtok_plugin", "__init__.py")), "True", str(size), "True"]


def test_copies_from_a_zip_file_have_the_same_path_in_every_process(zip_file, elsewhere):
    code = "from himtok_plugin.resources import default_checkpoint; print(default_checkpoint())"
    paths = {elsewhere(zip_file, "-c", code).stdout for _ in range(2)}
    assert len(paths) == 1 and "himtok_plugin" in paths.pop()


def test_zip_file_works_without_a_folder_for_copies(zip_file, elsewhere):
    code = "from himtok_plugin.resources import plugin_file as f; print(f(), f().is_file())"
    child = elsewhere(zip_file, "-c", code, XDG_CACHE_HOME=os.devnull)
    path, found = child.stdout.split()
    assert found == "True" and not Path(path).exists()  # removed at the end of that process


def test_child_processes_find_the_package_where_this_one_does(zip_file, elsewhere):
    code = (
        f"import os, subprocess, sys; sys.path.append({zip_file!r})\n"
        "from himtok_plugin.launch import prepare_command; prepare_command(['sft'])\n"
        "child = [sys.executable, '-c', 'import himtok_plugin; print(himtok_plugin.__file__)']\n"
        "subprocess.run(child, check=True)"
    )
    assert elsewhere("", "-c", code).stdout.splitlines()[-1].startswith(zip_file)


def test_path_of_an_installation_is_not_changed():
    code = (
        "import os, site; from pathlib import Path; from himtok_plugin import launch\n"
        "site.getsitepackages = lambda: [str(Path(launch.__file__).parents[1])]\n"
        "os.environ.pop('PYTHONPATH'); launch._share_package(); print('PYTHONPATH' in os.environ)"
    )
    assert python("-c", code).stdout == "False\n"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("scenes"), 2, seed=5)


@pytest.mark.parametrize(("found_in", "processes"), [("source_tree", None), ("zip_file", "2")])
def test_inference_runs_where_the_package_is_not_installed(found_in, processes, request, elsewhere, scenes, tmp_path):
    out = tmp_path / "out.jsonl"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    child = elsewhere(
        request.getfixturevalue(found_in),
        *["-m", launch.MODULE, "infer", "--model", "default", "--val_dataset", scenes, "--result_path", out],
        *["--temperature", "0", "--stream", "false", "--max_new_tokens", "96"],
        **({} if processes is None else {"NPROC_PER_NODE": processes, "MASTER_PORT": port}),
    )
    assert child.returncode == 0, child.stderr[-2000:]
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(results) == 2 and all("masks" in result for result in results)


@pytest.mark.slow
def test_spawned_workers_find_the_package_in_a_zip_file(zip_file, elsewhere, scenes, tmp_path):
    plugin = tmp_path / "spawning.py"
    plugin.write_text("import multiprocessing; multiprocessing.set_start_method('spawn', force=True)\n")
    child = elsewhere(
        zip_file,
        *["-m", launch.MODULE, "sft", "--model", "default", "--dataset", scenes, "--output_dir", tmp_path / "out"],
        *["--external_plugins", plugin, "--dataloader_num_workers", "1", "--max_steps", "1", "--tuner_type", "full"],
        *["--torch_dtype", "float32", "--report_to", "none", "--save_strategy", "no", "--split_dataset_ratio", "0"],
    )
    assert child.returncode == 0, child.stderr[-2000:]
