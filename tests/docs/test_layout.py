"""The layout in docs/architecture.md names every module of the package, and nothing else."""

import re

from pages import DOCS
from paths import PACKAGE

LAYOUT = re.compile(r"```\n(himtok_plugin/\n.*?)```", re.DOTALL)


def modules_on_disk():
    """Room -> names of its modules, without `__init__`; "" is the top of the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        if path.stem != "__init__":
            found.setdefault(path.parent.relative_to(PACKAGE).as_posix().removeprefix("."), set()).add(path.stem)
    return found


def modules_in_the_layout():
    """The same, as the layout tells it: rooms end with a slash, modules are indented below their room."""
    (layout,) = LAYOUT.findall((DOCS / "architecture.md").read_text(encoding="utf-8"))
    found, rooms = {}, {}
    for line in layout.splitlines()[1:]:
        indent, entry = re.fullmatch(r"( *)(.*)", line).groups()
        names = re.split(r"  +", entry)[0]
        level = len(indent) // 2
        if names.endswith("/"):
            rooms[level] = names.rstrip("/")
        elif re.fullmatch(r"\w+(, \w+)*", names):
            room = "/".join(rooms[above] for above in sorted(rooms) if above < level)
            found.setdefault(room, set()).update(names.split(", "))
    return found


def test_layout_and_package_name_the_same_modules():
    on_disk, listed = modules_on_disk(), modules_in_the_layout()
    rooms = sorted(on_disk.keys() | listed.keys())
    missing = {room: sorted(on_disk.get(room, set()) - listed.get(room, set())) for room in rooms}
    unknown = {room: sorted(listed.get(room, set()) - on_disk.get(room, set())) for room in rooms}
    missing, unknown = ({room: names for room, names in each.items() if names} for each in (missing, unknown))
    assert not missing and not unknown, f"not in docs/architecture.md: {missing}; not in the package: {unknown}"
