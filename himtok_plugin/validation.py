"""What a plain value is, and how an error message shows it."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np


def is_integer(value: Any) -> bool:
    """Whether a value is an integer, of Python or NumPy; bool is none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def abridged(value: Any) -> str:
    """`repr` of a value on one line of bounded length, for error messages."""
    return " ".join(_REPR.repr(value).split())


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
