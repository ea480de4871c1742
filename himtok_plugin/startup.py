"""`--plugin NAME` for every `swift` command, which ms-swift itself does not know.

ms-swift runs `swift X ...` as `python .../swift/cli/X.py ...`, under torchrun too, and takes plugins only as files:
`--external_plugins FILE`. So the line in `himtok_plugin_startup.pth`, which Python executes at every start, calls `run`
in exactly those processes. `run` looks NAME up in the entry-point group `swift.plugins`, adds the native flag to
`sys.argv`, and arranges that the plugin's options become fields of ms-swift's argument classes when these are imported
(`_AfterImport`). Processes that such a process spawns (data-loader workers, the server that `swift eval` starts) have
another command line; they learn of the plugins from an environment variable.

Contract: the standard library only, neither torch nor ms-swift is imported here; everything may run twice, as `.pth`
lines do in a virtual environment. `activate` does the same for a Python process that imports ms-swift itself.
Does not know: what a plugin does, which options it has (swift_integration/arguments.py).
"""

import importlib
import importlib.util
import os
import sys

ENTRY_POINT_GROUP = "swift.plugins"
# Also tested by the .pth line. Value: NAME=FILE, joined by os.pathsep.
ACTIVE_PLUGINS_VARIABLE = "HIMTOK_ACTIVE_PLUGINS"
# Known even where no distribution metadata is, as in a source tree that is merely on PYTHONPATH.
OWN_PLUGINS = {"himtok": "himtok_plugin.plugin.himtok"}
USAGE_ERROR = 2

# Once the module on the left has been executed, this function of swift_integration.arguments is applied to it.
_EXTENSIONS = {
    "swift.arguments.base_args.template_args": "extend_template_arguments",
    "swift.arguments.base_args.base_args": "extend_base_arguments",
}
_active: dict[str, str] = {}
_HELP_FLAGS = ("-h", "--help")
_held_back_help: list[str] = []


def run() -> None:
    """Entry of the `.pth` line: prepare this process if it is a `swift` command or was spawned by one."""
    argv = getattr(sys, "argv", None) or [""]
    if not is_swift_command(argv[0]):
        _install(_active_from_environment())
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
    if plugin in _active:
        return
    files = resolve_plugins([plugin])
    # Once the first plugin has extended the argument classes, further ones only have to be imported with it.
    too_late = [name for name in _EXTENSIONS if name in sys.modules] if not _active else []
    if too_late:
        raise RuntimeError(f"activate({plugin!r}) must come before {too_late[0]} is imported")
    _install(files)


def active_plugins() -> dict[str, str]:
    """The plugins of this process, name to file."""
    return dict(_active)


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


def resolve_plugins(names: list[str]) -> dict[str, str]:
    """Name to file, for each plugin name; nothing but the plugins' parent packages is imported."""
    # Slow to import, and only `swift --plugin` needs it.
    from importlib.metadata import entry_points

    modules = {**OWN_PLUGINS, **{entry.name: entry.module for entry in entry_points(group=ENTRY_POINT_GROUP)}}
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


def _active_from_environment() -> dict[str, str]:
    pairs = os.environ.get(ACTIVE_PLUGINS_VARIABLE, "").split(os.pathsep)
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _install(files: dict[str, str]) -> None:
    """Make `files` the process's plugins, and its children's."""
    if not files:
        return
    _active.update(files)
    os.environ[ACTIVE_PLUGINS_VARIABLE] = os.pathsep.join(f"{name}={file}" for name, file in _active.items())
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport:
    """Meta-path finder that finds nothing itself: it lets a function see a module right after its execution.

    ms-swift builds its argument classes from `TemplateArguments` while it is imported. Replacing that class between
    its definition and its first use needs no copy of ms-swift's code and imports nothing ahead of time.
    """

    def find_spec(self, name, path=None, target=None):
        if name not in _EXTENSIONS:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None:
                _call_after_execution(spec.loader, _EXTENSIONS[name])
                return spec
        return None


def _call_after_execution(loader, extension: str) -> None:
    # On the instance, so that the loader keeps its type: tools such as inspect ask it for the module's source.
    execute = loader.exec_module

    def exec_module(module):
        execute(module)
        arguments = importlib.import_module("himtok_plugin.swift_integration.arguments")
        getattr(arguments, extension)(module)
        sys.argv.extend(_held_back_help)
        _held_back_help.clear()

    loader.exec_module = exec_module
