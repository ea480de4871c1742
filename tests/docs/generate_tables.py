"""Write the generated tables of docs/: the options from their dataclass, the patches from their docstrings.

    python tests/docs/generate_tables.py

`tests/docs/test_generated_tables.py` fails when a page and the code differ.
"""

import ast
import re
import sys
import types
import typing
from dataclasses import MISSING, Field, fields
from inspect import getsource
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PATCHES = ROOT / "himtok_plugin" / "swift_integration" / "patches"
PACKAGES = ("accelerate", "evalscope", "transformers")
PATCH_PARTS = ("What", "Why", "Goes when", "Upstream")


def escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def capitalize(text: str) -> str:
    """The text with a capital letter, unless it starts with code or a package."""
    first = text.split(maxsplit=1)[0]
    return text if re.search(r"[^a-z,.]", first) or first in PACKAGES else text[0].upper() + text[1:]


def options_tables() -> str:
    """A table per group of options, in the order of the dataclass; a comment line of the class names a group."""
    from himtok_plugin.swift_integration.options.arguments import HimTokArguments

    types_of = typing.get_type_hints(HimTokArguments)
    by_name = {f.name: f for f in fields(HimTokArguments)}
    lines: list[str] = []
    group = "General"
    for line in getsource(HimTokArguments).splitlines():
        comment, option = re.fullmatch(r"    # (.+)", line), re.match(r"    (\w+): .+ = ", line)
        if comment:
            group = comment[1].rstrip(".")
        elif option and option[1] in by_name:
            if group is not None:
                lines += [f"\n## {group}\n", "| option | type | default | meaning |", "|---|---|---|---|"]
                group = None
            field = by_name.pop(option[1])
            cells = f"`--{field.name}`", type_text(types_of[field.name]), default_text(field), field.metadata["help"]
            lines.append(f"| {' | '.join(map(escape, cells))} |")
    assert not by_name, f"options that are not in the source of the class: {sorted(by_name)}"
    return "\n".join(lines) + "\n"


def type_text(kind: typing.Any) -> str:
    """How a table shows a type: `list[str]` is "several str", `Literal` its values."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_text(each) for each in arguments if each is not type(None))
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    return f"several {type_text(arguments[0])}" if origin is list else kind.__name__


def default_text(field: Field) -> str:
    default = field.default if field.default is not MISSING else field.default_factory()
    if default in (None, []):
        return "None" if default is None else "empty"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def patches_table() -> str:
    """A line per patch: its function, what it does, why, and when it can be removed."""
    lines = ["| patch | what it does | why | removed when | upstream |", "|---|---|---|---|---|"]
    for name, parts in patch_docstrings().items():
        cells = (capitalize(escape(parts[part])) for part in ("What", "Why", "Goes when"))
        cells = (*cells, escape(parts["Upstream"]))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def patch_docstrings() -> dict[str, dict[str, str]]:
    """`file.function` -> the parts of its docstring, for every public function of the patches that has one."""
    found = {}
    for path in sorted(PATCHES.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and (parts := split_docstring(ast.get_docstring(node) or "")):
                found[f"{path.stem}.{node.name}"] = parts
    return found


def split_docstring(text: str) -> dict[str, str]:
    pieces = re.split(rf"^({'|'.join(PATCH_PARTS)}): ", text, flags=re.MULTILINE)
    return {name: part.strip() for name, part in zip(pieces[1::2], pieces[2::2], strict=True)}


# Page -> (name of the marker in it, what stands between the markers).
TABLES = {"options.md": ("options", options_tables), "architecture.md": ("patches", patches_table)}


def with_table(text: str, marker: str, table: str) -> str:
    """The page with a table between its markers."""
    pattern = rf"(<!-- {marker}: [^\n]*-->\n).*(<!-- end of {marker} -->)"
    replaced, count = re.subn(pattern, lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)
    assert count == 1, f"expected the markers of {marker} once"
    return replaced


def main() -> None:
    for page, (marker, make_table) in TABLES.items():
        path = DOCS / page
        path.write_text(with_table(path.read_text(encoding="utf-8"), marker, make_table()), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
