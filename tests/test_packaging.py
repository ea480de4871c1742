"""`--plugin` works after every kind of installation: the start-up hook, the plugin file and the configs are installed.

The build backend builds wheels from a copy of the tree. They are installed without dependencies into new environments
and run with a script at the path of an ms-swift command. Neither torch nor ms-swift is needed.
"""

import importlib.util
import json
import os
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from wheels import HOOKS, build, copy_source
from wheels import run_outside as run

pytestmark = pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    copy = copy_source(tmp_path_factory.mktemp("source") / "himtok")
    (copy / "swift_configs" / "of_the_test.yaml").write_text("model: m\n")
    return copy


@pytest.fixture(scope="module", params=["build_wheel", "build_editable"])
def installed(request, source, tmp_path_factory):
    """Install the wheel into a new environment; return its python, its site-packages and the pip command for it."""
    folder = tmp_path_factory.mktemp(request.param)
    wheel = build(source, request.param, folder)
    # Without pip, which is faster: the pip of this environment installs into it.
    venv.create(folder / "env", with_pip=False, symlinks=os.name != "nt")
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run([*pip, "install", "--no-deps", "--no-index", wheel])
    site_packages = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip()
    return python, Path(site_packages), pip


def test_wheel_contains_hook_modules_configs_weights_and_page_templates(source, tmp_path):
    with zipfile.ZipFile(build(source, "build_wheel", tmp_path)) as wheel:
        names = set(wheel.namelist())
        entry_points = next(wheel.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
        metadata = next(wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))
    modules = {str(path.relative_to(source)) for path in (source / "himtok_plugin").rglob("*.py")}
    configs = {f"himtok_plugin/swift_configs/{path.name}" for path in (source / "swift_configs").glob("*.yaml")}
    folder = source / "himtok_plugin" / "pretrained"  # weights among them
    shipped = {f"himtok_plugin/pretrained/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
    assert sum(name.endswith(".safetensors") for name in shipped) == 3
    templates = {f"himtok_plugin/pages/{path.name}" for path in (source / "himtok_plugin" / "pages").glob("*.j2")}
    assert templates and {*HOOKS, *modules, *configs, *shipped, *templates} <= names
    assert not [name for name in names if name.startswith(("tests", "swift_configs", "examples"))]
    # ms-swift puts the plugin's folder first on sys.path, so any other file in it could shadow a package.
    assert [name for name in names if name.startswith("himtok_plugin/plugin/")] == ["himtok_plugin/plugin/himtok.py"]
    assert "himtok = himtok_plugin.cli:main" in entry_points
    assert "[swift.plugins]\nhimtok = himtok_plugin.plugin.himtok" in entry_points
    for extra in ("dev", "eval", "refine", "deepspeed"):
        assert f"Provides-Extra: {extra}" in metadata


def test_hook_runs_after_the_pth_files_of_editable_packages():
    assert min(HOOKS) > "__editable__.himtok_plugin-0.1.0.pth"


def test_source_distribution_builds_the_same_wheel(source, tmp_path):
    code = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    name = run([sys.executable, "-c", code, tmp_path], cwd=source).stdout.splitlines()[-1]
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path, filter="data")
    with zipfile.ZipFile(build(tmp_path / name.removesuffix(".tar.gz"), "build_wheel", tmp_path)) as wheel:
        assert {*HOOKS, "himtok_plugin/pretrained/lmm/model.safetensors"} <= {*wheel.namelist()}


def test_swift_command_gets_the_rewritten_arguments(installed, tmp_path):
    python, _, _ = installed
    script = tmp_path / "swift" / "cli" / "sft.py"
    script.parent.mkdir(parents=True)
    script.write_text("import json, sys; print(json.dumps([sys.argv[1:], sorted(sys.modules)]))")
    argv, modules = json.loads(run([python, script, "--plugin", "himtok", "--model", "m"]).stdout)
    assert argv[:-1] == ["--plugin", "himtok", "--model", "m", "--external_plugins"]
    assert Path(argv[-1]).parts[-3:] == ("himtok_plugin", "plugin", "himtok.py") and Path(argv[-1]).is_file()
    assert "himtok_plugin.startup" in modules


def test_other_processes_do_not_import_the_package(installed):
    python, _, _ = installed
    assert run([python, "-c", "import sys; print('himtok_plugin' in sys.modules)"]).stdout == "False\n"


def test_shipped_configs_are_found(installed):
    python, _, _ = installed
    code = "from himtok_plugin.resources import config_path; print(config_path('of_the_test').read_text())"
    assert run([python, "-c", code], cwd=python.parent).stdout.startswith("model: m\n")


def test_unknown_config_is_rejected_with_the_names_of_all_configs(installed):
    python, _, _ = installed
    code = (
        "from himtok_plugin.resources import config_path\n"
        "try: config_path('../setup')\n"
        "except ValueError as error: print(error)"
    )
    message = run([python, "-c", code], cwd=python.parent).stdout
    assert message.startswith("config: got '../setup', expected one of [") and "of_the_test" in message


def test_uninstalling_removes_the_hooks(installed):  # last: the environment is empty afterwards
    python, site_packages, pip = installed
    assert all((site_packages / hook).is_file() for hook in HOOKS)
    run([*pip, "uninstall", "--yes", "himtok_plugin"])
    assert list(site_packages.glob("*himtok*")) == []
