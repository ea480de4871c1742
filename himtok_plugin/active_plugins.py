"""Which plugins are active in this process, and in the processes that it starts.

Standard library only: the start-up hook and ms-swift's argument classes both ask here.
"""

import os

# The `.pth` line tests this name too. Value: NAME=FILE pairs, joined by os.pathsep.
ACTIVE_PLUGINS_VARIABLE = "HIMTOK_ACTIVE_PLUGINS"
_active: dict[str, str] = {}


def active_plugins() -> dict[str, str]:
    """The active plugins of this process, name to file."""
    return dict(_active)


def add_active_plugins(files: dict[str, str]) -> None:
    """Make plugins (name to file) active in this process and in its children."""
    _active.update(files)
    os.environ[ACTIVE_PLUGINS_VARIABLE] = os.pathsep.join(f"{name}={file}" for name, file in _active.items())


def inherited_plugins() -> dict[str, str]:
    """The active plugins of the process that started this one, name to file, as the environment lists them."""
    pairs = os.environ.get(ACTIVE_PLUGINS_VARIABLE, "").split(os.pathsep)
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)
