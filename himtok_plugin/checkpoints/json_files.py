"""Reads the JSON files of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .file_contents import read_json


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        ValueError: the file is missing, cut, or something else, such as a git-lfs pointer; or it holds another value.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a JSON object")
    return content


def read_optional_json_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object; return an empty one if the file is missing."""
    return read_json_object(path) if path.is_file() else {}
