"""The one way in which ms-swift is changed: functions of its classes and modules are replaced by ours around them.

Contract: `around` keeps a method's kind (plain, class or static), name and signature, and hands what stood there to the
replacement, be it ms-swift's or an earlier replacement of ours; `add` gives a class a method it has not. Each refuses
where ms-swift is another than expected: `around` where there is nothing to replace, `add` where there is something by
now. `REPLACED` lists what both did, which a test holds against the table in this package's docstring. Does not know
what is changed, and why, nor whether what it replaced still means the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import getattr_static
from typing import Any

REPLACED: list[str] = []  # "owner.name"
_MARK = "_himtok_replaced"


def around(owner: Any, name: str) -> Callable[[Callable], Callable]:
    """Decorator of what takes the place of `owner.name`; it is given what stood there first, then all arguments.

    Raises:
        AttributeError: there is nothing of that name: this is another ms-swift than the one written against.
    """

    def put(replacement: Callable) -> Callable:
        found = getattr_static(owner, name)
        kind = type(found) if isinstance(found, (classmethod, staticmethod)) else None
        original = found if kind is None else found.__func__

        @wraps(original)
        def replaced(*args, **kwargs):
            return replacement(original, *args, **kwargs)

        setattr(replaced, _MARK, True)
        setattr(owner, name, replaced if kind is None else kind(replaced))
        REPLACED.append(f"{owner.__name__.rpartition('.')[2]}.{name}")
        return replacement

    return put


def is_replaced(owner: type, name: str) -> bool:
    """Whether `around` was here, or at a base class."""
    return hasattr(getattr(owner, name), _MARK)


def add(owner: type, name: str) -> Callable[[Callable], Callable]:
    """Decorator of a method that `owner` has not of its own, but may inherit, or be given by `__getattr__`.

    Raises:
        RuntimeError: it has it: this is another ms-swift than the one written against.
    """

    def put(method: Callable) -> Callable:
        if name in vars(owner):
            raise RuntimeError(f"{owner.__name__}.{name}: ms-swift has it by now, expected none to be there")
        setattr(owner, name, method)
        REPLACED.append(f"{owner.__name__}.{name}")
        return method

    return put
