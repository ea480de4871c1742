"""The plugins that are active in this process and in the processes that it starts.

Imports the standard library only, because the start-up hook uses it.
"""

import os

# The line in himtok_plugin_startup.pth has this name too. Value: NAME=FILE pairs, joined by os.pathsep.
ACTIVE_PLUGINS_VARIABLE = "HIMTOK_ACTIVE_PLUGINS"
_active: dict[str, str] = {}


def active_plugins() -> dict[str, str]:
    """Active plugins of this process: name -> file."""
    return dict(_active)


def add_active_plugins(files: dict[str, str]) -> None:
    """Activate plugins (name -> file) in this process and in its child processes."""
    _active.update(files)
    os.environ[ACTIVE_PLUGINS_VARIABLE] = os.pathsep.join(f"{name}={file}" for name, file in _active.items())


def inherited_plugins() -> dict[str, str]:
    """Active plugins of the parent process, from the environment: name -> file."""
    pairs = os.environ.get(ACTIVE_PLUGINS_VARIABLE, "").split(os.pathsep)
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
