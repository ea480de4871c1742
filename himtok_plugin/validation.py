"""Checks of plain values, and how error messages show them."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy. A bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def abridged(value: Any) -> str:
    """The `repr` of a value, shortened to one line, for error messages."""
    return " ".join(_REPR.repr(value).split())


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
