"""Replaces functions of ms-swift's classes and modules.

Contract: `around` keeps a method's kind (plain, class or static), name and signature, and passes the original to the
replacement. `add` adds a method that a class itself does not have. Both fail if ms-swift differs from what a patch
expects. A replaced function has `__wrapped__`, its original, and `__replacement__`, the function in the patch:
tests/swift_integration/patches/ finds all patches by them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import getattr_static
from typing import Any

REPLACEMENT = "__replacement__"


def around(owner: Any, name: str) -> Callable[[Callable], Callable]:
    """Return a decorator that makes a function the replacement of `owner.name`.

    The replacement gets the original, ms-swift's or an earlier replacement, and then all arguments.

    Args:
        owner: a class or a module.
        name: a function of it, possibly inherited.
    Raises:
        AttributeError: `owner` has no such function: ms-swift differs from the version this was written for.
    """

    def put(replacement: Callable) -> Callable:
        found = getattr_static(owner, name)
        kind = type(found) if isinstance(found, (classmethod, staticmethod)) else None
        original = found if kind is None else found.__func__

        @wraps(original)
        def replaced(*args, **kwargs):
            return replacement(original, *args, **kwargs)

        setattr(replaced, REPLACEMENT, replacement)
        setattr(owner, name, replaced if kind is None else kind(replaced))
        return replacement

    return put


def is_replaced(owner: type, name: str) -> bool:
    """Return whether `around` has replaced the method in this class or in a base class."""
    return hasattr(getattr(owner, name), REPLACEMENT)


def add(owner: type, name: str, hides: Callable | None = None) -> Callable[[Callable], Callable]:
    """Return a decorator that adds a function to a class as a method.

    Args:
        owner: a class that inherits the method or finds it by `__getattr__`, but does not define it.
        name: the method.
        hides: the function that callers reach without this patch.
    Raises:
        RuntimeError: `owner` defines the method: ms-swift differs from the version this was written for.
    """

    def put(method: Callable) -> Callable:
        if name in vars(owner):
            raise RuntimeError(f"{owner.__name__}.{name}: got a method that ms-swift defines, expected none")
        setattr(method, REPLACEMENT, method)
        if hides is not None:
            setattr(method, "__wrapped__", hides)  # noqa: B010 mypy knows no such attribute
        setattr(owner, name, method)
        return method

    return put
