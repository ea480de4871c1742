"""`--plugin NAME` becomes ms-swift's own flag, in `swift` processes and nowhere else.

Everything that touches the process (argv, finders, environment) runs in a child, with the repository on PYTHONPATH, so
that the outcome does not depend on how or whether the package is installed here.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

from himtok_plugin import startup

PLUGIN_FILE = str(ROOT / "himtok_plugin" / "plugin" / "himtok.py")
SCRIPT = "/env/swift/cli/sft.py"


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name != startup.ACTIVE_PLUGINS_VARIABLE}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**clean, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def argv_after_run(*argv: str, runs: int = 1) -> list[str]:
    code = (
        "import json, sys; from himtok_plugin import startup; sys.argv = sys.argv[1:]\n"
        f"for _ in range({runs}): startup.run()\n"
        "assert 'torch' not in sys.modules and 'swift' not in sys.modules\n"
        "print(json.dumps(sys.argv))"
    )
    child = run_python(code, *argv)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("/env/lib/python3.11/site-packages/swift/cli/sft.py", True),
        ("swift/cli/infer.py", True),
        ("C:\\env\\swift\\cli\\rlhf.py", True),
        ("/env/bin/swift", False),
        ("/home/me/myswift/cli/sft.py", False),
        ("/env/swift/cli/_megatron/sft.py", False),
        ("-c", False),
        ("", False),
    ],
)
def test_only_the_scripts_behind_swift_are_swift_commands(script, expected):
    assert startup.is_swift_command(script) is expected


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (["/env/bin/python", "-m", "swift.cli.infer", "--plugin", "himtok"], True),
        (["/env/bin/python", "-X", "dev", "-m", "swift.cli.sft"], True),
        (["/env/bin/python", "-m", "swift.cli.main", "sft"], False),
        (["/env/bin/python", "-m", "himtok_plugin.launch", "sft"], False),
        (["/env/bin/python", "train.py", "-m", "other"], False),
    ],
)
def test_python_dash_m_runs_a_swift_command_too(command_line, expected):
    assert startup.is_swift_module(command_line) is expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--plugin", "himtok"], ["himtok"]),
        (["--plugin=himtok"], ["himtok"]),
        (["--model", "m", "--plugin", "a", "b", "a", "--seed", "1"], ["a", "b"]),
        (["--plugin", "a", "--plugin", "b"], ["b"]),
        (["--model", "plugin"], []),
        (["--plugin"], []),
    ],
)
def test_plugin_names_are_read_as_argparse_reads_a_list_flag(arguments, expected):
    assert startup.requested_plugins(arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--x", "1"], ["--x", "1", "--external_plugins", "F"]),
        (["--external_plugins", "a.py", "b.py", "--x", "1"], ["--x", "1", "--external_plugins", "F", "a.py", "b.py"]),
        (["--external_plugins=a.py", "--x"], ["--x", "--external_plugins", "F", "a.py"]),
        (["--external-plugins", "a.py"], ["--external_plugins", "F", "a.py"]),
        (["--external_plugins", "a.py", "F"], ["--external_plugins", "F", "a.py"]),
    ],
)
def test_external_plugins_are_merged_with_those_given(arguments, expected):
    once = startup.with_external_plugins(arguments, ["F"])
    assert once == expected
    assert startup.with_external_plugins(once, ["F"]) == once


@pytest.mark.parametrize("runs", [1, 2])
def test_swift_command_gets_the_native_flag_and_keeps_plugin(runs):
    given = [SCRIPT, "--plugin", "himtok", "--model", "m"]
    assert argv_after_run(*given, runs=runs) == [*given, "--external_plugins", PLUGIN_FILE]


def test_swift_command_without_plugin_is_left_alone():
    assert argv_after_run(SCRIPT, "--model", "m", "--help") == [SCRIPT, "--model", "m", "--help"]


@pytest.mark.parametrize("runs", [1, 2])
def test_help_is_held_back_until_the_argument_classes_exist(runs):
    argv = argv_after_run(SCRIPT, "--plugin", "himtok", "--help", runs=runs)
    assert argv == [SCRIPT, "--plugin", "himtok", "--external_plugins", PLUGIN_FILE]


def test_other_commands_are_left_alone():
    argv = ["/env/bin/other", "--plugin", "himtok"]
    assert argv_after_run(*argv) == argv


def test_unknown_plugin_is_one_line_and_exit_status_2():
    code = f"import sys; from himtok_plugin import startup; sys.argv = [{SCRIPT!r}, '--plugin', 'nope']; startup.run()"
    child = run_python(code)
    assert child.returncode == 2
    assert child.stdout == ""
    assert child.stderr.count("\n") == 1
    assert "'nope'" in child.stderr and "himtok" in child.stderr


WITHOUT_GRADIO = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "gradio" else find(name, *rest)
from himtok_plugin import startup
sys.argv = [sys.argv[1], "--plugin", "himtok"]
startup.run()
assert "torch" not in sys.modules
print("goes on")
"""


def test_page_without_gradio_is_one_line_with_the_pip_command_before_anything_is_loaded():
    child = run_python(WITHOUT_GRADIO, SCRIPT.replace("sft", "app"))
    assert child.returncode == 2
    assert child.stdout == ""
    assert child.stderr.splitlines() == [
        f"error: gradio: got no installation, expected one for the page: pip install '{startup.GRADIO}'"
    ]


def test_other_commands_do_without_gradio():
    assert run_python(WITHOUT_GRADIO, SCRIPT).stdout == "goes on\n"


def test_gradio_is_the_one_of_the_extra():
    assert f'"app": ["{startup.GRADIO}"]' in (ROOT / "setup.py").read_text(encoding="utf-8")


def test_resolving_reports_an_unknown_plugin():
    with pytest.raises(ValueError, match="'nope'.*himtok"):
        startup.resolve_plugins(["nope"])


def test_missing_argv_does_no_harm():
    code = "import sys; from himtok_plugin import startup; {}; startup.run(); print('fine')"
    for change in ("del sys.argv", "sys.argv = []", "sys.argv = ['']"):
        assert run_python(code.format(change)).stdout == "fine\n"


@pytest.mark.parametrize(
    "command_line",
    [
        ["/env/bin/python", "/env/swift/cli/_megatron/sft.py", "--plugin", "himtok"],
        ["/env/bin/python", "-m", "swift.cli._megatron.rlhf", "--plugin=himtok"],
        ["/env/bin/python", "-m", "swift.cli._megatron.main", "pt", "--plugin", "himtok"],
        ["/env/bin/python", "-m", "torch.distributed.run", "/env/swift/cli/_megatron/export.py", "--plugin", "himtok"],
        ["/env/bin/python", "/env/swift/cli/_megatron/sft.py", "--external_plugins", PLUGIN_FILE],
    ],
)
def test_megatron_refuses_plugins(command_line):
    with pytest.raises(ValueError, match="--plugin: got himtok with megatron, .* expected a swift command"):
        startup.refuse_megatron(*as_python_starts(command_line))


@pytest.mark.parametrize(
    "command_line",
    [
        ["/env/bin/python", "/env/swift/cli/_megatron/sft.py", "--model", "m", "--external_plugins", "mine.py"],
        ["/env/bin/python", "-m", "torch.distributed.run", "/env/swift/cli/_megatron/sft.py", "--model", "m"],
        ["/env/bin/python", "-m", "torch.distributed.run", "/env/swift/cli/sft.py", "--plugin", "himtok"],
        ["/env/bin/python", "/env/swift/cli/sft.py", "--plugin", "himtok"],
        ["/env/bin/python", "edit.py", "/env/swift/cli/_megatron/sft.py", "--plugin", "himtok"],
    ],
)
def test_megatron_without_plugins_and_other_programs_are_left_alone(command_line):
    startup.refuse_megatron(*as_python_starts(command_line))


def as_python_starts(command_line):
    """`sys.argv` and `sys.orig_argv` when the start-up hook runs: `-m` stands for a module not found yet."""
    argv = command_line[1:]
    return (["-m", *argv[2:]] if argv[0] == "-m" else argv), command_line


@pytest.mark.parametrize("verb", ["pt", "sft", "rlhf", "export"])
def test_megatron_with_a_plugin_is_one_line_and_exit_status_2(verb):
    argv = [f"/env/swift/cli/_megatron/{verb}.py", "--plugin", "himtok"]
    child = run_python(f"import sys; from himtok_plugin import startup; sys.argv = {argv!r}; startup.run()")
    assert (child.returncode, child.stdout, child.stderr.count("\n")) == (2, "", 1)
    assert "megatron" in child.stderr


@pytest.mark.parametrize("flag", ["--external_plugins", "--external-plugins", "--custom_register_path"])
@pytest.mark.parametrize("relative", [False, True])
def test_native_flag_with_the_plugin_file_means_the_plugin(flag, relative):
    file = os.path.relpath(PLUGIN_FILE) if relative else PLUGIN_FILE
    assert startup.requested_plugins(["--model", "m", flag, "other.py", file]) == ["himtok"]
    assert startup.requested_plugins(["--plugin", "other", flag, file]) == ["other", "himtok"]
    assert startup.requested_plugins([flag, "other.py", "/my/plugin/himtok.py"]) == []


def test_installed_packages_are_searched_once():
    code = (
        "import sys, importlib.metadata as metadata; from himtok_plugin import startup\n"
        "calls, search = [], metadata.entry_points\n"
        "metadata.entry_points = lambda **options: calls.append(options) or search(**options)\n"
        f"sys.argv = [{SCRIPT!r}, '--plugin', 'himtok']; startup.run(); startup.run()\n"
        "for group in startup.OWN_ENTRY_POINTS: assert 'himtok' in startup.entry_points_of(group)\n"
        "print(len(calls))"
    )
    assert run_python(code).stdout == "1\n"


def hook_line() -> str:
    lines = (ROOT / "himtok_plugin_startup.pth").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("import "))


def start_file_entry_points() -> list[str]:
    """Entry points in the `.start` file, read as `site` of Python 3.15 reads it (PEP 829)."""
    lines = (ROOT / "himtok_plugin_startup.start").read_bytes().decode("utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


# What Python 3.15 does with an entry point; its `pkgutil.resolve_name(…, strict=True)` takes MODULE:CALLABLE only.
CALL_ENTRY_POINTS = (
    "import pkgutil\n"
    "for entry_point in {}:\n"
    "    assert entry_point.count(':') == 1\n"
    "    pkgutil.resolve_name(entry_point)()\n"
)


def test_start_file_has_the_name_of_the_pth_file():
    assert [path.suffix for path in sorted(ROOT.glob("himtok_plugin_startup.*"))] == [".pth", ".start"]
    assert start_file_entry_points() == ["himtok_plugin.startup_hook:run_in_swift_processes"]


START_OF_PYTHON_315 = CALL_ENTRY_POINTS.format(start_file_entry_points())
START_OF_PYTHON_314 = f"exec({hook_line()!r})\n"


@pytest.mark.parametrize("start", [START_OF_PYTHON_314, START_OF_PYTHON_315, START_OF_PYTHON_314 + START_OF_PYTHON_315])
def test_both_hooks_prepare_a_swift_command(start):
    code = f"import json, sys; sys.argv = sys.argv[1:]\n{start}\nprint(json.dumps(sys.argv))"
    given = [SCRIPT, "--plugin", "himtok", "--model", "m"]
    assert json.loads(run_python(code, *given).stdout) == [*given, "--external_plugins", PLUGIN_FILE]


@pytest.mark.parametrize(
    ("command_line", "runs"),
    [
        (["/env/bin/python", SCRIPT, "--plugin", "himtok"], True),
        (["/env/bin/python", "-m", "swift.cli.infer", "--plugin", "himtok"], True),
        (["/env/bin/python", "-m", "torch.distributed.run", SCRIPT, "--plugin", "himtok"], True),
        (["/env/bin/python", "/env/swift/cli/_megatron/sft.py"], True),
        (["/env/bin/python", "/env/bin/swift", "deploy", "--plugin", "himtok"], True),
        (["/env/bin/python", "/env/bin/swift", "app", "--plugin", "himtok"], True),
        (["/env/bin/python", "/env/bin/swift", "sft", "--plugin", "himtok"], False),
        (["/env/bin/python", "/env/bin/fab", "deploy"], False),
        (["/env/bin/python", "-c", "pass"], False),
        (["/env/bin/python", "-m", "pip", "install", "ms-swift"], False),
    ],
)
def test_both_hooks_run_in_the_same_processes(command_line, runs):
    code = (
        "import json, sys, types\n"
        f"sys.argv, sys.orig_argv = {as_python_starts(command_line)!r}\n"
        "calls = []\n"
        "startup = types.ModuleType('himtok_plugin.startup'); startup.run = lambda: calls.append(hook)\n"
        "sys.modules[startup.__name__] = startup\n"
        f"hook = 'pth'\n{START_OF_PYTHON_314}\n"
        f"hook = 'start'\n{START_OF_PYTHON_315}\n"
        "print(calls)"
    )
    assert run_python(code).stdout == ("['pth', 'start']\n" if runs else "[]\n")


def test_entry_point_imports_nothing_more_in_other_processes():
    code = f"import pkgutil, sys; before = {{*sys.modules}}\n{START_OF_PYTHON_315}\nprint({{*sys.modules}} - before)"
    new = run_python(code, PYTHONNOUSERSITE="1").stdout
    assert set(re.findall("'(.+?)'", new)) <= {"himtok_plugin", "himtok_plugin.startup_hook"}


def test_process_that_is_not_swift_does_not_import_the_package():
    code = f"exec({hook_line()!r}); import sys; print([name for name in sys.modules if 'himtok_plugin' in name])"
    # An editable install brings a finder module of setuptools, __editable___himtok_plugin_..._finder.
    modules = run_python(code).stdout
    assert "'himtok_plugin" not in modules


@pytest.mark.parametrize("change", ["del sys.argv", "sys.argv = []", "sys.argv = ['/env/swift/cli/sft.py']"])
def test_hook_line_survives_a_missing_package_and_a_missing_argv(change):
    child = run_python(
        f"import sys; sys.modules['himtok_plugin'] = None; {change}; exec({hook_line()!r}); print('fine')"
    )
    assert (child.stdout, child.stderr) == ("fine\n", "")


def test_spawned_processes_know_the_plugins(tmp_path):
    script = tmp_path / "swift" / "cli" / "sft.py"
    script.parent.mkdir(parents=True)
    script.write_text(
        "import json, multiprocessing, sys\n"
        f"exec({hook_line()!r})\n"  # what site does at every start, wherever the package is installed
        "def child():\n"
        "    from himtok_plugin import startup\n"
        "    finders = [f for f in sys.meta_path if isinstance(f, startup._AfterImport)]\n"
        "    print(json.dumps([sys.argv[1:], startup.active_plugins(), len(finders)]))\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=child)\n"
        "    process.start(); process.join(); sys.exit(process.exitcode)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), "--plugin", "himtok"]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr
    argv, plugins, finders = json.loads(child.stdout)
    assert argv == ["--plugin", "himtok", "--external_plugins", PLUGIN_FILE]
    assert plugins == {"himtok": PLUGIN_FILE}
    assert finders == 1


def test_nested_swift_command_without_plugin_has_none():
    code = (
        "import os, sys; from himtok_plugin import startup\n"
        f"sys.argv = [{SCRIPT!r}, '--model', 'm']; startup.run()\n"
        f"print(startup.active_plugins(), {startup.ACTIVE_PLUGINS_VARIABLE!r} in os.environ)"
    )
    child = run_python(code, **{startup.ACTIVE_PLUGINS_VARIABLE: f"himtok={PLUGIN_FILE}"})
    # An installed hook has already prepared this child, which is a plain `python -c`; the command's own flags win.
    assert child.stdout.endswith("False\n")


@pytest.mark.skipif(importlib.util.find_spec("swift") is None, reason="ms-swift is not installed")
@pytest.mark.parametrize("value", ["himtok", "[himtok]"])
def test_plugin_key_of_a_yaml_reaches_the_command(tmp_path, monkeypatch, value):
    monkeypatch.setenv("SWIFT_CONFIG_FILE", "restored after the test")
    from swift.cli.main import parse_yaml_args

    config = tmp_path / "stage.yaml"
    config.write_text(f"model: m\nplugin: {value}\nexternal_plugins: [other.py]\nmask_loss_weight: 1.0\n")
    argv = [str(config), "--seed", "1"]
    parse_yaml_args(argv)
    assert argv_after_run(SCRIPT, *argv)[1:] == [
        *["--model", "m", "--plugin", "himtok", "--mask_loss_weight", "1.0", "--seed", "1"],
        *["--external_plugins", PLUGIN_FILE, "other.py"],
    ]


def test_activate_after_the_argument_classes_is_refused():
    code = (
        "import sys, types; name = 'swift.arguments.base_args.template_args'\n"
        "sys.modules[name] = types.ModuleType(name)\n"
        "from himtok_plugin import startup\n"
        "startup.activate()"
    )
    child = run_python(code)
    assert "RuntimeError: activate('himtok') must come before" in child.stderr
