"""Checks of plain values, and how error messages show them."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np


def is_integer(value: Any) -> bool:
    """Whether a value is an integer of Python or NumPy. A bool is not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def finite_numbers(values: Any) -> np.ndarray:
    """Convert a flat list, tuple or array of numbers to float64 (n,).

    Raises:
        ValueError: another type, or an element that is no number (a bool or a string is none), is not finite, or is too
            large for float64.
    """
    if isinstance(values, np.ndarray):
        is_numeric = values.dtype.kind in "iuf"
    else:
        is_numeric = isinstance(values, list | tuple) and all(map(_is_number_type, set(map(type, values))))
    try:
        numbers = np.asarray(values, dtype=np.float64) if is_numeric else None
    except OverflowError:  # an integer beyond float64
        numbers = None
    if numbers is None or numbers.ndim != 1 or not np.isfinite(numbers).all():
        raise ValueError(f"{abridged(values)}: expected finite numbers")
    return numbers


def counted(count: int, noun: str) -> str:
    """A count with its noun, in the plural unless it is one: "1 track", "2 tracks"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def abridged(value: Any) -> str:
    """The `repr` of a value, shortened to one line, for error messages. It never fails."""
    try:
        return " ".join(_REPR.repr(value).split())
    except Exception:  # `repr` of an unknown type, or of an array of huge integers
        return f"a {type(value).__name__}"


def _is_number_type(kind: type) -> bool:
    return issubclass(kind, int | float | np.integer | np.floating) and not issubclass(kind, bool)


_LONGEST_INTEGER = 1 << 128  # Python refuses to write integers of several thousand digits


class _Repr(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < _LONGEST_INTEGER else f"an integer of {x.bit_length()} bits"


_REPR = _Repr()
_REPR.maxstring = _REPR.maxother = 120
