"""`--plugin NAME` for every `swift` command; ms-swift itself has no such flag.

ms-swift runs `swift X ...` as `python .../swift/cli/X.py ...`, under torchrun too, and takes plugins only as files:
`--external_plugins FILE`. So the line in `himtok_plugin_startup.pth`, which Python executes at every start, calls `run`
in exactly those processes. `run` looks NAME up in the entry-point group `swift.plugins`, adds the native flag to
`sys.argv`, and extends ms-swift's argument classes as these are imported (`_AfterImport`): with the field `plugin`
always, and with a plugin's own options where it has an entry point of the same name in the group
`swift.plugin_arguments`. Processes that such a process spawns (data-loader workers, the server that `swift eval`
starts) have another command line; they find the plugins in an environment variable.

Contract: the standard library only, neither torch nor ms-swift is imported here; everything may run twice, as `.pth`
lines do in a virtual environment. `activate` does the same for a Python process that imports ms-swift itself.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .active_plugins import ACTIVE_PLUGINS_VARIABLE, active_plugins, add_active_plugins, inherited_plugins

PLUGIN_GROUP = "swift.plugins"  # entry points NAME = MODULE: the file that ms-swift imports
# Entry points NAME = MODULE:FUNCTION. FUNCTION is called with each of ARGUMENT_MODULES right after its execution.
ARGUMENTS_GROUP = "swift.plugin_arguments"
ARGUMENT_MODULES = ("swift.arguments.base_args.template_args", "swift.arguments.base_args.base_args")
# Also found where there is no distribution metadata, as in a source tree that is merely on PYTHONPATH.
OWN_ENTRY_POINTS = {
    PLUGIN_GROUP: {"himtok": "himtok_plugin.plugin.himtok"},
    ARGUMENTS_GROUP: {"himtok": "himtok_plugin.swift_integration.options.swift_arguments:add_options"},
}
PLUGIN_FLAG = "himtok_plugin.swift_integration.options.plugin_flag:add_plugin_flag"  # whatever the plugins
USAGE_ERROR = 2

_HELP_FLAGS = ("-h", "--help")
_held_back_help: list[str] = []


def run() -> None:
    """Entry of the `.pth` line: prepare this process if it is a `swift` command or was spawned by one."""
    argv = getattr(sys, "argv", None) or [""]
    if not is_swift_command(argv[0]):
        _install(inherited_plugins())
        return
    # A `swift` command goes by its own flags, not by those of the command that may have started it.
    os.environ.pop(ACTIVE_PLUGINS_VARIABLE, None)
    names = requested_plugins(argv[1:])
    if not names:
        return
    try:
        files = resolve_plugins(names)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # Not sys.exit: Python has not finished starting and would call that a fatal error of its own.
        os._exit(USAGE_ERROR)
    # `swift sft` and others first look for single flags with small parsers of their own, and these would answer --help
    # with nothing but those flags. It comes back when the argument classes are there.
    _held_back_help[:] = _held_back_help + [a for a in argv[1:] if a in _HELP_FLAGS]
    arguments = [a for a in argv[1:] if a not in _HELP_FLAGS]
    argv[1:] = with_external_plugins(arguments, list(files.values()))
    _install(files)


def activate(plugin: str = "himtok") -> None:
    """What `--plugin PLUGIN` does, for notebooks and tests. Call it before `swift.arguments` is imported.

    Argument objects made afterwards (`SftArguments(...)`, `sft_main([...])`) have the plugin's fields and import it.
    """
    if plugin in active_plugins():
        return
    files = resolve_plugins([plugin])
    imported = [name for name in ARGUMENT_MODULES if name in sys.modules]
    # A plugin without options of its own may follow another one, which has brought the field `plugin`.
    if imported and (not active_plugins() or plugin in entry_points_of(ARGUMENTS_GROUP)):
        raise RuntimeError(f"activate({plugin!r}) must come before {imported[0]} is imported")
    _install(files)


def is_swift_command(script: str) -> bool:
    """Whether `sys.argv[0]` is one of ms-swift's commands, `.../swift/cli/<verb>.py`."""
    folder, _, name = ("/" + script.replace("\\", "/")).rpartition("/")
    return folder.endswith("/swift/cli") and name.endswith(".py")


def requested_plugins(arguments: list[str]) -> list[str]:
    """Names given with `--plugin A B` or `--plugin=A`. As with any list flag of ms-swift, the last one counts."""
    names: list[str] = []
    for i, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--plugin":
            names = [value] if equals else _values_after(arguments, i)
    return list(dict.fromkeys(names))


def with_external_plugins(arguments: list[str], files: list[str]) -> list[str]:
    """The arguments with `files` in `--external_plugins`, in front of files already there. Idempotent."""
    result, present = [], []
    i = 0
    while i < len(arguments):
        flag, equals, value = arguments[i].partition("=")
        if flag in ("--external_plugins", "--external-plugins"):
            present = [value] if equals else _values_after(arguments, i)  # the last one counts, as in argparse
            i += 1 if equals else 1 + len(present)
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
    """Name to value of the entry points of a group; other distributions may replace this package's own ones."""
    # Slow to import, and only `swift --plugin` needs it.
    from importlib.metadata import entry_points

    return {**OWN_ENTRY_POINTS[group], **{entry.name: entry.value for entry in entry_points(group=group)}}


def resolve_plugins(names: list[str]) -> dict[str, str]:
    """Name to file, for each plugin name; nothing but the plugins' parent packages is imported."""
    modules = entry_points_of(PLUGIN_GROUP)
    files = {}
    for name in names:
        if name not in modules:
            raise ValueError(f"--plugin: got {name!r}, expected one of the installed plugins {sorted(modules)}")
        try:
            spec = importlib.util.find_spec(modules[name])
        except ImportError:
            spec = None
        if spec is None or spec.origin is None:
            raise ValueError(f"--plugin: got {name!r}, expected its module {modules[name]!r} to be a file, found none")
        files[name] = os.path.abspath(spec.origin)
    return files


def _install(files: dict[str, str]) -> None:
    """Make `files` the process's plugins, and its children's."""
    if not files:
        return
    add_active_plugins(files)
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport:
    """Meta-path finder that finds nothing itself: it lets functions see a module right after its execution.

    ms-swift builds its argument classes from `TemplateArguments` while it is imported. Replacing that class between
    its definition and its first use needs no copy of ms-swift's code and imports nothing ahead of time.
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
    """Let the flag `--plugin` and every active plugin extend an argument module of ms-swift."""
    own = entry_points_of(ARGUMENTS_GROUP)
    for extension in (PLUGIN_FLAG, *(own[name] for name in active_plugins() if name in own)):
        extending, _, function = extension.partition(":")
        getattr(importlib.import_module(extending), function)(module)


def _call_after_execution(loader: Any, function: Callable[[ModuleType], None]) -> None:
    # On the instance, so that the loader keeps its type: tools such as inspect ask it for the module's source.
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        function(module)
        sys.argv.extend(_held_back_help)
        _held_back_help.clear()

    loader.exec_module = exec_module
