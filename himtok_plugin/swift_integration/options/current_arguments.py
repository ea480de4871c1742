"""The argument object of this process, for code that ms-swift calls without it, such as model loaders.

Contract: every argument object with the plugin's options calls `set_current_arguments` once its options are valid.
"""

from typing import Any

_current: list[Any] = []  # at most one


def get_current_arguments() -> Any | None:
    """Return the argument object that was validated last in this process; None if there is none."""
    return _current[-1] if _current else None


def set_current_arguments(args: Any) -> None:
    """Make `get_current_arguments` return `args`."""
    _current[:] = [args]
