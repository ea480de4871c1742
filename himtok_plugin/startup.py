"""`--plugin NAME` for every `swift` command; ms-swift itself has no such flag.

ms-swift runs `swift X …` as `python …/swift/cli/X.py …`, also under torchrun, and accepts plugins only as files:
`--external_plugins FILE`. At every start, Python executes the line in `himtok_plugin_startup.pth`, or from Python 3.15
on calls the entry point in `himtok_plugin_startup.start` (startup_hook.py); both call `run` in exactly these processes.
`run` looks NAME up in the entry-point group `swift.plugins`, adds ms-swift's flag to `sys.argv`, and extends ms-swift's
argument classes when they are imported (`_AfterImport`): with the field `plugin`, and with the options of each plugin
that has an entry point of its name in the group `swift.plugin_arguments`. Processes that such a process spawns
(data-loader workers, the server that `swift eval` starts) have another command line and read the plugins from an
environment variable.

`swift` itself waits for such a process and does not pass signals on, so a server would survive the SIGTERM that its
`swift deploy` gets. With a plugin, `swift deploy` and `swift app` therefore become the process of the server or of the
page instead of starting one. The page needs gradio, which `run` looks for before anything heavy is imported.

`--external_plugins …/himtok_plugin/plugin/himtok.py`, ms-swift's own flag, means `--plugin himtok`. ms-swift's second
command, `megatron`, has argument classes of its own, without these options: there both flags are an error.

Contract: imports the standard library only. Everything may run twice, as `.pth` lines do in a virtual environment.
`activate` does the same for a Python process that imports ms-swift itself.
"""

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from .active_plugins import ACTIVE_PLUGINS_VARIABLE, active_plugins, add_active_plugins, inherited_plugins

PLUGIN_GROUP = "swift.plugins"  # entry points NAME = MODULE, whose file ms-swift imports
# Entry points NAME = MODULE:FUNCTION. FUNCTION is called with each of ARGUMENT_MODULES when it has been imported.
ARGUMENTS_GROUP = "swift.plugin_arguments"
ARGUMENT_MODULES = ("swift.arguments.base_args.template_args", "swift.arguments.base_args.base_args")
# Used without distribution metadata, as in a source tree on PYTHONPATH.
OWN_ENTRY_POINTS = {
    PLUGIN_GROUP: {"himtok": "himtok_plugin.plugin.himtok"},
    ARGUMENTS_GROUP: {"himtok": "himtok_plugin.swift_integration.options.swift_arguments:add_options"},
}
PLUGIN_FLAG = "himtok_plugin.swift_integration.options.plugin_flag:add_plugin_flag"  # with any plugin
OWN_PLUGIN = "himtok"
USAGE_ERROR = 2
GRADIO = "gradio>=5.32.1,<6"  # as the extra `app` in setup.py; ms-swift 4.6 recommends 5.32.1, its page fails with 6

_EXTERNAL_PLUGINS_FLAGS = ("--external_plugins", "--external-plugins")
_OLD_EXTERNAL_PLUGINS_FLAGS = ("--custom_register_path", "--custom-register-path")  # of ms-swift 3
_HELP_FLAGS = ("-h", "--help")
_held_back_help: list[str] = []
_prepared: list[str] | None = None  # what `run` has made of `sys.argv`


def run() -> None:
    """Prepare this process if it is a `swift` command or was spawned by one; called by the start-up hook."""
    global _prepared
    argv = getattr(sys, "argv", None) or [""]
    if argv == _prepared:
        return
    try:
        refuse_megatron(argv, sys.orig_argv)
        if is_server_launcher(argv, sys.orig_argv):
            _become_server()
        elif is_swift_command(argv[0]) or (argv[0] == "-m" and is_swift_module(sys.orig_argv)):
            _prepare_command(argv)
        else:
            activate_inherited()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # sys.exit would be reported as a fatal error of Python, which has not finished starting.
        os._exit(USAGE_ERROR)
    _prepared = list(argv)


def _prepare_command(argv: list[str]) -> None:
    # A `swift` command uses its own flags, even if another `swift` command started it.
    os.environ.pop(ACTIVE_PLUGINS_VARIABLE, None)
    names = requested_plugins(argv[1:])
    if not names:
        return
    if OWN_PLUGIN in names and _command_of(argv, sys.orig_argv) == "app":
        require_gradio()
    files = resolve_plugins(names)
    # Some commands first parse a few flags with parsers of their own, whose --help lists only these flags. The flag is
    # therefore removed until the argument classes are imported.
    _held_back_help[:] = _held_back_help + [a for a in argv[1:] if a in _HELP_FLAGS]
    arguments = [a for a in argv[1:] if a not in _HELP_FLAGS]
    argv[1:] = with_external_plugins(arguments, list(files.values()))
    _install(files)


def require_gradio() -> None:
    """Raise ValueError if gradio, which the page of `swift app` is built with, is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"gradio: got no installation, expected one for the page: pip install '{GRADIO}'")


def activate(plugin: str = "himtok") -> None:
    """Activate a plugin as `--plugin PLUGIN` does, in notebooks and tests, before `swift.arguments` is imported.

    Argument objects created afterwards (`SftArguments(…)`, `sft_main([…])`) have the plugin's fields and import it.

    Raises:
        RuntimeError: the argument classes are imported already.
        ValueError: there is no such plugin.
    """
    if plugin in active_plugins():
        return
    _installed_entry_points.cache_clear()  # in a notebook, a plugin may have been installed since
    files = resolve_plugins([plugin])
    imported = [name for name in ARGUMENT_MODULES if name in sys.modules]
    # A plugin without options may be activated later if another one has already added the field `plugin`.
    if imported and (not active_plugins() or plugin in entry_points_of(ARGUMENTS_GROUP)):
        raise RuntimeError(f"activate({plugin!r}) must come before {imported[0]} is imported")
    _install(files)


def activate_inherited() -> None:
    """Activate the plugins of the `swift` command that started this process."""
    _install(inherited_plugins())


def is_swift_command(script: str) -> bool:
    """Whether `sys.argv[0]` is one of ms-swift's commands, `.../swift/cli/<verb>.py`."""
    return _is_script_in(script, "/swift/cli")


def is_swift_module(command_line: list[str]) -> bool:
    """Return whether a whole command line is `python -m swift.cli.<verb>`; `main` only starts other processes."""
    package, _, verb = _module_of(command_line).rpartition(".")
    return package == "swift.cli" and verb != "main"


def _command_of(argv: list[str], command_line: list[str]) -> str:
    """NAME of the process that runs `.../swift/cli/NAME.py` or `python -m swift.cli.NAME`."""
    if argv[0] == "-m":
        return _module_of(command_line).rpartition(".")[2]
    return argv[0].replace("\\", "/").rpartition("/")[2].removesuffix(".py")


def is_server_launcher(argv: list[str], command_line: list[str]) -> bool:
    """Whether this process is `swift deploy`, `swift app` or the same through `python -m swift.cli.main`.

    It starts the process of the server or of the page.

    Args:
        argv: `sys.argv` as it is when Python starts, `-m` before the arguments of a module.
        command_line: `sys.orig_argv`.
    """
    launches = _module_of(command_line) == "swift.cli.main" if argv[0] == "-m" else os.path.basename(argv[0]) == "swift"
    return launches and argv[1:2] in (["deploy"], ["app"]) and os.name == "posix"


def _become_server() -> None:
    """Let `subprocess.run`, by which ms-swift starts its commands, replace this process if there is a plugin."""
    import subprocess

    start = subprocess.run

    def run(command: Any, *args: Any, **options: Any) -> Any:
        is_server = isinstance(command, list) and len(command) > 1 and is_swift_command(command[1])
        if is_server and requested_plugins(command[2:]):
            sys.stdout.flush()
            os.execv(command[0], command)
        return start(command, *args, **options)

    subprocess.run = run  # type: ignore[assignment]


def refuse_megatron(argv: list[str], command_line: list[str]) -> None:
    """Refuse plugins in ms-swift's command `megatron`, also in the torchrun that starts its processes.

    Args:
        argv: `sys.argv` as it is when Python starts, `-m` before the arguments of a module.
        command_line: `sys.orig_argv`.
    Raises:
        ValueError: a process of `megatron` has `--plugin`, or the file of the plugin himtok in `--external_plugins`.
    """
    module = _module_of(command_line) if argv[0] == "-m" else ""
    scripts = argv if module == "torch.distributed.run" else argv[:1]
    is_megatron = module.startswith("swift.cli._megatron.") or any(
        _is_script_in(script, "/swift/cli/_megatron") for script in scripts
    )
    names = requested_plugins(argv) if is_megatron else []
    if names:
        raise ValueError(
            f"--plugin: got {' '.join(names)} with megatron, which does not support plugins by name, expected a swift "
            "command; swift trains models that need several devices with --deepspeed or --fsdp"
        )


def _is_script_in(script: str, folder: str) -> bool:
    path, _, name = ("/" + script.replace("\\", "/")).rpartition("/")
    return path.endswith(folder) and name.endswith(".py")


def _module_of(command_line: list[str]) -> str:
    """MODULE in `python … -m MODULE …`, or an empty string."""
    modules = (module for flag, module in zip(command_line, command_line[1:], strict=False) if flag == "-m")
    return next(modules, "")


def requested_plugins(arguments: list[str]) -> list[str]:
    """Names of the plugins that the arguments of a command ask for.

    They are in `--plugin A B` or `--plugin=A`. The file of the plugin himtok in `--external_plugins` counts as himtok.
    """
    names = _flag_values(arguments, "--plugin") or []
    for flags in (_EXTERNAL_PLUGINS_FLAGS, _OLD_EXTERNAL_PLUGINS_FLAGS):
        if any(_is_own_file(file) for file in _flag_values(arguments, *flags) or []):
            names.append(OWN_PLUGIN)
    return list(dict.fromkeys(names))


def _is_own_file(file: str) -> bool:
    from .resources import PLUGIN_FILE

    return tuple(os.path.abspath(file).replace(os.sep, "/").split("/")[-3:]) == PLUGIN_FILE


def _flag_values(arguments: list[str], *names: str) -> list[str] | None:
    """Values of a flag that takes a list, None without the flag. The last occurrence counts, as in argparse."""
    values = None
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in names:
            values = [value] if equals else _values_after(arguments, i)
    return values


def with_external_plugins(arguments: list[str], files: list[str]) -> list[str]:
    """Add `files` to `--external_plugins`, before files that it has already, and return all arguments. Idempotent."""
    present = _flag_values(arguments, *_EXTERNAL_PLUGINS_FLAGS) or []
    result = []
    i = 0
    while i < len(arguments):
        flag, equals, _ = arguments[i].partition("=")
        if flag in _EXTERNAL_PLUGINS_FLAGS:
            i += 1 if equals else 1 + len(_values_after(arguments, i))
        else:
            result.append(arguments[i])
            i += 1
    return [*result, "--external_plugins", *dict.fromkeys([*files, *present])]


def _values_after(arguments: list[str], index: int) -> list[str]:
    values = []
    for argument in arguments[index + 1 :]:
        if argument.startswith("-"):
            break
        values.append(argument)
    return values


def entry_points_of(group: str) -> dict[str, str]:
    """Entry points of a group, name -> value. Those of other distributions replace those of this package."""
    return {**OWN_ENTRY_POINTS[group], **_installed_entry_points()[group]}


@cache
def _installed_entry_points() -> dict[str, dict[str, str]]:
    """Entry points of both groups: group -> name -> value. Reads the metadata of all installed distributions, once."""
    # Imported here because it is slow and only `swift --plugin` needs it.
    from importlib.metadata import entry_points

    installed = entry_points()
    return {group: {entry.name: entry.value for entry in installed.select(group=group)} for group in OWN_ENTRY_POINTS}


def resolve_plugins(names: list[str]) -> dict[str, str]:
    """Find the files of plugins, name -> file on disk. Only the parent packages of their modules are imported.

    Raises:
        ValueError: a plugin is not installed, or its module is not a file.
    """
    from .resources import plugin_file

    modules = entry_points_of(PLUGIN_GROUP)
    files = {}
    for name in names:
        if name not in modules:
            raise ValueError(f"--plugin: got {name!r}, expected one of the installed plugins {sorted(modules)}")
        own = modules[name] == OWN_ENTRY_POINTS[PLUGIN_GROUP][OWN_PLUGIN]
        # Python does not find our module in every zip file: its folder has no __init__.py.
        file = plugin_file() if own else _module_file(modules[name])
        if file is None or not file.is_file():
            raise ValueError(f"--plugin: got {name!r}, expected a file for its module {modules[name]!r}, found none")
        files[name] = os.path.abspath(file)
    return files


def _module_file(module: str) -> Path | None:
    from .resources import shipped_path

    try:
        spec = importlib.util.find_spec(module)
    except ImportError:
        return None
    return None if spec is None or spec.origin is None else shipped_path(Path(spec.origin))


def _install(files: dict[str, str]) -> None:
    """Activate plugins (name -> file) in this process and its child processes, and watch for argument modules."""
    if not files:
        return
    # torch warns of `torch.jit.script` in a library that ms-swift imports; nobody who trains or infers can change it.
    warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
    add_active_plugins(files)
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport:
    """Meta-path finder that leaves importing to others and extends argument modules right after their execution.

    ms-swift derives its argument classes from `TemplateArguments` while it is imported. Replacing this class between
    its definition and its first use needs no copy of ms-swift's code and imports nothing early.
    """

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name not in ARGUMENT_MODULES:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                _call_after_execution(spec.loader, _extend_arguments)
                return spec
        return None


def _extend_arguments(module: ModuleType) -> None:
    """Add the field `plugin` and the options of all active plugins to an argument module of ms-swift."""
    extensions = entry_points_of(ARGUMENTS_GROUP)
    for extension in (PLUGIN_FLAG, *(extensions[name] for name in active_plugins() if name in extensions)):
        extension_module, _, function = extension.partition(":")
        getattr(importlib.import_module(extension_module), function)(module)


def _call_after_execution(loader: Any, function: Callable[[ModuleType], None]) -> None:
    # The method is replaced on the instance, so that the loader keeps its type, which tools such as inspect need.
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        function(module)
        sys.argv.extend(_held_back_help)
        _held_back_help.clear()

    loader.exec_module = exec_module
