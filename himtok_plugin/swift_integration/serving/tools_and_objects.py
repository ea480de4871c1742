"""Checks of what templates write into prompts beside texts: tools, their calls, and objects with boxes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from himtok_plugin.validation import abridged

_TOOL_CHOICES = ("none", "auto", "required")


def check_tools(tools: Any, choice: Any = None) -> None:
    """Check the fields `tools` and `tool_choice`.

    Raises:
        ValueError: `tools` is no list of tools in OpenAI's form or in that of a function alone, or `choice` is neither
            a word of OpenAI's API nor one of the tools.
    """
    tools = [] if tools is None else tools
    if not isinstance(tools, list):
        raise ValueError(f"tools: got {abridged(tools)}, expected a list")
    for i, tool in enumerate(tools):
        _check_function(tool, f"tools[{i}]")
    if isinstance(choice, Mapping):
        _check_function({"function": choice.get("function")}, "tool_choice")
        name, names = choice["function"]["name"], [tool.get("function", tool)["name"] for tool in tools]
        if name not in names:
            raise ValueError(f"tool_choice: got {abridged(name)}, expected one of the tools {abridged(names)}")
    elif choice is not None and choice not in _TOOL_CHOICES:
        raise ValueError(f"tool_choice: got {abridged(choice)}, expected one of {', '.join(_TOOL_CHOICES)}, or a tool")


def check_tool_calls(calls: Any, name: str) -> None:
    """Check the calls of tools in a message; `name` is the field's."""
    if calls is None:
        return
    if not isinstance(calls, list):
        raise ValueError(f"{name}: got {abridged(calls)}, expected a list")
    for i, call in enumerate(calls):
        _check_function(call, f"{name}[{i}]")


def check_objects(objects: Any) -> None:
    """Check the field `objects`: texts `ref` and boxes `bbox`, for `<ref-object>` and `<bbox>` in the messages.

    Raises:
        ValueError: it has another form.
    """
    if not objects:
        return
    if not isinstance(objects, dict):
        raise ValueError(f"objects: got {abridged(objects)}, expected an object with ref and bbox")
    ref, boxes = objects.get("ref") or [], objects.get("bbox")
    if not isinstance(ref, list) or not all(isinstance(each, str) for each in ref):
        raise ValueError(f"objects.ref: got {abridged(ref)}, expected a list of texts")
    if not isinstance(boxes, list):
        raise ValueError(f"objects.bbox: got {abridged(boxes)}, expected a list of boxes [x1, y1, x2, y2]")
    for i, box in enumerate(boxes):
        if not isinstance(box, list) or len(box) not in (2, 4) or not all(map(_is_coordinate, box)):
            raise ValueError(f"objects.bbox[{i}]: got {abridged(box)}, expected [x1, y1, x2, y2], or a point [x, y]")
    kind = objects.get("bbox_type")
    if kind not in (None, "real", "norm1"):
        raise ValueError(f"objects.bbox_type: got {abridged(kind)}, expected 'real' or 'norm1'")


def _check_function(value: Any, name: str) -> None:
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{name}: got {abridged(value)}, expected {{'type': 'function', 'function': {{'name': …}}}}")


def _is_coordinate(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 1e9 if isinstance(value, int) else math.isfinite(value)
