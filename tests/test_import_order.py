"""Imports run one way: no circle, nothing up the order of rooms; the core works where ms-swift cannot be imported."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest
from paths import PACKAGE, ROOT

# From the ground up: a room imports from itself and from those before it.
ORDER = (
    "active_plugins",
    "resources",
    "startup",
    "startup_hook",
    "launch",
    "validation",
    "files",
    "mask_text",
    "hierarchical_loss",
    "checkpoints",
    "words",
    "masks",
    "mask_tokenizer",
    "lmm",
    "adapters",
    "jobs",
    "metrics",
    "prediction",
    "client",
    "pages",
    "data",
    "evaluation",
    "export",
    "segmenting",
    "internvl_chat",
    "benchmarks",
    "demo",
    "app",
    "cli",
    "swift_integration",
    "plugin",
)
SWIFT_ORDER = ("options", "model", "samples", "answering", "serving", "training", "evaluation", "patches", "register")
MOST_LOOSE_MODULES = 9
KNOWS_SWIFT = {"swift_integration", "plugin"}  # rooms; everything else is core


@cache
def imports():
    """Module -> modules of the package that it imports, anywhere in its file; names without `himtok_plugin.`."""
    files = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {module: imported_modules(module, path, files) for module, path in files.items()}


def imported_modules(module, path, files):
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = ["himtok_plugin", *package[: len(package) - node.level + 1]] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        for name in names:
            first, _, rest = name.partition(".")
            if first == "himtok_plugin":
                # `from room import module`, or a name from the module or the package before it.
                found.add(rest if rest in files else rest.rpartition(".")[0])
    return found - {module, ""}  # the package itself has but a version and lazy names


def test_every_import_leads_to_a_module_that_exists():
    assert {target for targets in imports().values() for target in targets} <= imports().keys()


def test_no_module_imports_itself_through_others():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_room_imports_one_further_up():
    place = {room: i for i, room in enumerate(ORDER)}
    edges = [(module, target) for module, targets in imports().items() for target in targets if module]
    assert {module.split(".")[0] for module, _ in edges} <= place.keys()
    assert not [(a, b) for a, b in edges if place[b.split(".")[0]] > place[a.split(".")[0]]]


def test_rooms_of_the_swift_integration_import_one_way_too():
    place = {room: i for i, room in enumerate(SWIFT_ORDER)}
    inside = [
        (module, target)
        for module, targets in imports().items()
        for target in targets
        if module.startswith("swift_integration.") and target.startswith("swift_integration.")
    ]
    assert inside
    assert not [(a, b) for a, b in inside if place[b.split(".")[1]] > place[a.split(".")[1]]]


def test_the_top_holds_few_loose_modules():
    loose = [path.name for path in PACKAGE.glob("*.py")]
    assert len(loose) <= MOST_LOOSE_MODULES, loose


BLOCK_SWIFT = """
import sys

class NoSwift:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "swift":
            raise ImportError(f"the core imported {name}")

sys.meta_path.insert(0, NoSwift())
"""


def core_modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not KNOWS_SWIFT & set(parts) and parts[-1] != "__main__":
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_python(code):
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_core_module_imports_where_swift_cannot_be():
    modules = list(core_modules())
    assert "himtok_plugin.masks.sources" in modules
    run_python(BLOCK_SWIFT + f"import importlib\nfor name in {modules!r}:\n    importlib.import_module(name)\n")


def test_the_bare_package_imports_neither_numpy_nor_torch_nor_swift():
    code = "import sys, himtok_plugin\nprint({'numpy', 'torch', 'swift', 'PIL', 'transformers'} & set(sys.modules))"
    assert run_python(code).strip() == "set()"


@pytest.mark.parametrize(
    ("module", "barred"),
    [
        ("mask_text", {"numpy", "torch", "PIL"}),
        ("masks", {"torch", "transformers"}),
        ("metrics", {"torch", "transformers"}),
        ("masks.drawing", {"torch", "transformers"}),
        ("export.run", {"torch", "transformers"}),
    ],
)
def test_light_modules_stay_light(module, barred):
    code = f"import sys, himtok_plugin.{module}\nprint({barred!r} & set(sys.modules))"
    assert run_python(code).strip() == "set()"


def test_public_names_resolve_and_unknown_ones_do_not():
    import himtok_plugin
    from himtok_plugin.masks import Masks

    assert himtok_plugin.Masks is Masks and "SegmentationMetrics" in dir(himtok_plugin)
    with pytest.raises(AttributeError, match="no attribute 'NoSuchName'"):
        _ = himtok_plugin.NoSuchName
