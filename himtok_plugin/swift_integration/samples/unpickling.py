"""Pickles of templates and preprocessors, for data-loader workers that are spawned or forked from a server.

ms-swift imports external plugins into such a worker only after the worker has unpickled the dataset and the collator.
By then, classes that a plugin defines were not found, and methods that a plugin replaces are bound as they were before.
The pickles made here import the plugins first.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from swift.utils import get_external_files, import_external_file


def reduce_with_plugins(instance: Any) -> tuple[Any, ...]:
    """Return what `__reduce_ex__` returns, for an object whose class can be found by its name."""
    cls = type(instance)
    return _make_instance, (get_external_files(), cls.__module__, cls.__qualname__), instance.__getstate__()


def _make_instance(external_files: list[str], module: str, qualname: str) -> Any:
    """Import external plugins, unless this process has done so, and make an object without calling its `__init__`."""
    for file in external_files:
        if file not in get_external_files():
            import_external_file(file)
    found: Any = sys.modules.get(module) or import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found.__new__(found)
