"""The core works in a process where ms-swift cannot be imported, and the bare package imports nothing heavy."""

import subprocess
import sys

import pytest
from paths import PACKAGE, ROOT

KNOWS_SWIFT = {"swift_integration", "plugin"}  # folders; everything else is core

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
    ],
)
def test_light_modules_stay_light(module, barred):
    code = f"import sys, himtok_plugin.{module}\nprint({barred!r} & set(sys.modules))"
    assert run_python(code).strip() == "set()"


def test_public_names_resolve_and_unknown_ones_do_not():
    import himtok_plugin
    from himtok_plugin.masks.sources import Masks

    assert himtok_plugin.Masks is Masks and "SegmentationMetrics" in dir(himtok_plugin)
    with pytest.raises(AttributeError, match="no attribute 'NoSuchName'"):
        _ = himtok_plugin.NoSuchName
