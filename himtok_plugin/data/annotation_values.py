"""Ids and sizes of annotations, which programs write as numbers or as text."""

from __future__ import annotations

import math
import re
from typing import Any

from himtok_plugin.masks.rle import check_size
from himtok_plugin.validation import abridged, is_integer

from .skip_log import BAD_SIZE, SkipLog

_WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0*)?")
_LONGEST_NUMBER = 40  # characters; longer ones are no numbers of annotations


def annotated_size(height: Any, width: Any, log: SkipLog, where: str) -> tuple[int, int] | None:
    """(h, w) from two fields of an annotation; whole floats and text, which some exports write, are accepted.

    Args:
        log: gets a remark if the fields have values and these are no size.
        where: the file with the annotation.
    Returns:
        None if the fields have no values or wrong ones: then the image's own size counts.
    """
    if height in (None, "") and width in (None, ""):
        return None
    try:
        return check_size([_parse_whole_number(height), _parse_whole_number(width)])
    except ValueError:
        found = f"height {abridged(height)}, width {abridged(width)}"
        log.remark(BAD_SIZE, f"{where}: got {found}, expected whole numbers above 0")
        return None


def _parse_whole_number(value: Any) -> Any:
    """640, 640.0, "640" and "640.0" as 640; anything else unchanged."""
    try:
        number = float(value) if isinstance(value, str | float) else value
        return int(number) if isinstance(number, float) and number.is_integer() else number
    except ValueError:
        return value


def normal_id(value: Any) -> int | str | None:
    """An id in the form in which it is compared: 1, 1.0, "1" and "1.0" are the same id; None: it is none.

    Text with leading zeros stays text: "007" and "7" may be two images.
    """
    if isinstance(value, str):
        text = value.strip()
        number = _WHOLE_NUMBER.fullmatch(text)
        return int(number[1]) if number and len(text) <= _LONGEST_NUMBER else text or None
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else repr(value)
    return int(value) if is_integer(value) else None


def id_text(value: Any) -> str:
    """An id as text; empty if it is none."""
    own = normal_id(value)
    return "" if own is None else str(own)
