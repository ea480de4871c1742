"""Class maps: which class a pixel value, a colour, a class index or a category id stands for (`--classes`).

Contract: a map is given as text, "road=1,car=2", or as a file: JSON or YAML with {name: value}, {value: name}, a list
of names, YOLO's `names` or COCO's `categories`, or text with a name, "value: name", "value name" or CVAT's
"name:r,g,b::" on each line. Names in a list stand for 0, 1, 2, …; in labelme's lists, `__ignore__` comes first and
stands for 255. A colour (r, g, b) is the integer 65536 r + 256 g + b.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from himtok_plugin.files.text import read_text
from himtok_plugin.validation import abridged, is_integer

ClassMap = Mapping[int, str]

IGNORE_LABEL, BACKGROUND_LABEL = "__ignore__", "_background_"  # labelme's conventions
VOID_VALUE = 255  # of unlabelled pixels in label maps, also labelme's value of `__ignore__`
FILE_SUFFIXES = (".json", ".yaml", ".yml", ".txt")
_COLOUR = re.compile(r"(\d+),\s*(\d+),\s*(\d+)")
_NUMBERED = re.compile(r"\d+\s+\D.*")  # "1 road"
_EXPECTED = "name=value pairs like road=1,car=2, or a JSON, YAML or text file of them"


def read_class_map(text: str) -> ClassMap:
    """The class map that the value of `--classes` stands for: value -> name.

    Raises:
        ValueError: neither a file nor pairs of names and values, or two names of one value.
    """
    path = Path(text)
    try:
        if path.suffix.lower() in FILE_SUFFIXES or path.is_file():
            return _read_file(path)
        return _to_map(_split_pairs(text))
    except OSError as error:
        raise ValueError(f"--classes: got {abridged(text)}, which cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"--classes: got {abridged(text)}: {error}") from error


def check_class_map(content: Any) -> ClassMap:
    """The class map in a value of a JSON or YAML file: value -> name.

    Raises:
        ValueError: not a list or mapping of names and values.
    """
    if isinstance(content, Mapping):
        for key in ("names", "categories", "classes"):
            if isinstance(content.get(key), list | Mapping):
                return check_class_map(content[key])
    if isinstance(content, list) and content and all(isinstance(entry, Mapping) for entry in content):
        return _to_map((entry.get("name"), entry.get("color", entry.get("id"))) for entry in content)
    if isinstance(content, list):
        first = -1 if content and content[0] == IGNORE_LABEL else 0
        return _to_map((name, VOID_VALUE if i < 0 else i) for i, name in enumerate(content, first))
    if isinstance(content, Mapping):
        return _to_map(content.items())
    raise ValueError(f"is {abridged(content)}, expected {_EXPECTED}")


def _split_pairs(text: str) -> Iterator[tuple[str, str]]:
    for pair in text.split(","):
        name, equals, value = pair.rpartition("=")
        if not equals:
            raise ValueError(f"{abridged(pair.strip())} is no pair, expected {_EXPECTED}")
        if "=" in name:
            raise ValueError(f"{abridged(pair.strip())} is more than one pair, expected {_EXPECTED}")
        yield name.strip(), value.strip()


def _read_file(path: Path) -> ClassMap:
    text = read_text(path)
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        return _read_lines(text)
    try:
        return check_class_map(
            json.loads(text, object_pairs_hook=_to_dict) if path.suffix.lower() == ".json" else yaml.safe_load(text)
        )
    except (json.JSONDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"is not {path.suffix[1:].upper()} ({' '.join(str(error).split())})") from error


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. A key that is there twice is an error: one of its values would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
        raise ValueError(f"{abridged(twice)} is there twice, expected each key once, or value: name")
    return found


def _read_lines(text: str) -> ClassMap:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and all(_NUMBERED.fullmatch(line) for line in lines):
        return _to_map(line.split(None, 1) for line in lines)
    if not any(":" in line for line in lines):
        return check_class_map(lines)
    pairs = []
    for line in lines:
        key, _, value = line.partition(":")
        pairs.append((key.strip(), value.split(":")[0].strip()))
    return _to_map(pairs)


def _to_map(pairs: Any) -> ClassMap:
    """Value -> name from pairs of both, in either order."""
    found: dict[int, str] = {}
    for first, second in pairs:
        value, name = _parse_value(second), first
        if value is None:
            value, name = _parse_value(first), second
        if value is None:
            raise ValueError(f"{abridged(first)}: {abridged(second)} has no value, expected {_EXPECTED}")
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{value} has the name {abridged(name)}, expected {_EXPECTED}")
        name = " ".join(name.split())
        if found.setdefault(value, name) != name:
            raise ValueError(f"{value} is both {found[value]!r} and {name!r}, expected one name for each value")
    if not found:
        raise ValueError(f"holds no classes, expected {_EXPECTED}")
    return found


def _parse_value(value: Any) -> int | None:
    """A pixel value, an index or an id, or a colour as one integer; None if it is none of these."""
    if isinstance(value, str):
        if colour := _COLOUR.fullmatch(value.strip()):
            value = [int(part) for part in colour.groups()]
        elif value.strip().isdecimal():
            value = int(value)
    if isinstance(value, list | tuple) and len(value) == 3 and all(is_integer(v) and 0 <= v <= 255 for v in value):
        return (int(value[0]) << 16) + (int(value[1]) << 8) + int(value[2])
    return int(value) if is_integer(value) and value >= 0 else None
