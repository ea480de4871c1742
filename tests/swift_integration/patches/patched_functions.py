"""Finds the functions of other packages that this plugin replaces, and compares them with the reviewed ones.

patched_functions.json holds, for every such function, the forms that were reviewed: a signature, a hash of the source
with decorators and comments, and the first version of the package that has this form. All releases within the bounds of
setup.py were reviewed. After a review of changes:

    python tests/swift_integration/patches/patched_functions.py --update

This adds the installed forms to those accepted, so that several versions of a package can be supported. Functions that
no patch replaces any more are removed. Without `--update` the changes are printed, and the exit status says if any.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import inspect
import json
import sys
import textwrap
from dataclasses import dataclass, field
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

RECORD_FILE = Path(__file__).with_suffix(".json")
INTEGRATION = "himtok_plugin/swift_integration/"
PACKAGES = ("swift", "transformers", "accelerate", "evalscope", "peft")

# What a search of classes and modules does not find: functions that are replaced on an instance, or changed in place.
# A new one has to be added here by hand.
NOT_FOUND_BY_SEARCH = {
    **{
        f"swift.infer_engine.{engine.lower()}_engine:{engine}Engine._prepare_generation_config": (
            "model/constraints.py: constrain_engine"
        )
        for engine in ("Vllm", "Sglang", "Lmdeploy")
    },
    "swift.infer_engine.transformers_engine:TransformersEngine.infer": "patches/answering.py: _record_responses",
    "swift.pipelines.infer.deploy:SwiftDeploy.create_chat_completion": "patches/deploying.py: serve_segments",
    "swift.optimizers.base:OptimizerCallback.create_optimizer": "training/trainer.py: MaskTrainer",
    **{
        f"transformers.models.gemma4.modeling_gemma4:Gemma4Model.get_{kind}_features": (
            "patches/loading.py: concatenate_gemma4_features"
        )
        for kind in ("image", "video")
    },
    "peft.peft_model:PeftModel.save_pretrained": "model/adapters.py: exclude_embeddings_on_save",
}


Record: TypeAlias = dict[str, list[dict[str, str]]]  # of every function, its accepted forms


@dataclass
class PatchedFunction:
    """A function that patches replace: which ones, and where."""

    patches: set[str] = field(default_factory=set)
    places: set[str] = field(default_factory=set)  # "Owner.name" of classes and modules


def find_patched_functions() -> tuple[dict[str, PatchedFunction], set[str]]:
    """Apply all patches in this process and search the other packages for functions that were defined in this one.

    Returns:
        the replaced functions by "module:qualified name", and the "Owner.name" of added ones that replace none.
    """
    _apply_all_patches()
    found: dict[str, PatchedFunction] = {}
    added = set()
    for owner, name, function in _foreign_attributes():
        place = f"{owner.__name__.rpartition('.')[2]}.{name}"
        patches, original = _unwrap(function)
        if not patches:
            continue
        if original is None:
            added.add(place)
            continue
        entry = found.setdefault(f"{original.__module__}:{original.__qualname__}", PatchedFunction())
        entry.patches |= patches
        entry.places.add(place)
    for name, patch in NOT_FOUND_BY_SEARCH.items():
        found.setdefault(name, PatchedFunction()).patches.add(patch)
    return found, added


def _apply_all_patches() -> None:
    from himtok_plugin import startup

    startup.activate("himtok")
    if has_evalscope():
        import evalscope.api.registry  # noqa: F401  patches/evaluating.py does nothing without it
    if has_gradio():
        import swift.pipelines.app.app  # noqa: F401  patches/opening.py does nothing without it

    from swift.trainers import TrainerFactory

    from himtok_plugin.swift_integration import register

    register.register()
    for kind in ("grpo", "gkd", "kto"):  # these trainers are patched when they are chosen
        TrainerFactory.get_trainer_cls(SimpleNamespace(rlhf_type=kind))


def has_evalscope() -> bool:
    return find_spec("evalscope") is not None


def has_gradio() -> bool:
    return find_spec("gradio") is not None


def _foreign_attributes() -> list[tuple[Any, str, Any]]:
    """Return owner, name and function of all functions in modules and classes of the other packages."""
    modules = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] in PACKAGES and m is not None]
    owners: dict[int, Any] = {id(m): m for m in modules}
    for module in modules:
        for value in list(vars(module).values()):
            if inspect.isclass(value) and value.__module__.partition(".")[0] in PACKAGES:
                owners |= {id(cls): cls for cls in value.__mro__ if cls.__module__.partition(".")[0] in PACKAGES}
    return [
        (owner, name, getattr(value, "__func__", value))
        for owner in owners.values()
        for name, value in list(vars(owner).items())
        if inspect.isfunction(getattr(value, "__func__", value))
    ]


def _unwrap(function: Any) -> tuple[set[str], Any]:
    """Return the patches around a function, and the function below them, None if there is none."""
    patches = set()
    while function is not None:
        code = getattr(function, "__replacement__", function).__code__
        _, is_ours, file = code.co_filename.partition(INTEGRATION)
        if not is_ours:
            return patches, inspect.unwrap(function)
        patches.add(f"{file}: {code.co_qualname.partition('.')[0]}")
        function = getattr(function, "__wrapped__", None)
    return patches, None


def is_module_missing(name: str) -> bool:
    """Whether the installed package has no such module: a model that came later, so that nothing is to be replaced."""
    try:
        return find_spec(name.partition(":")[0]) is None
    except ModuleNotFoundError:
        return True


def describe_function(name: str) -> dict[str, str] | None:
    """Return signature and hash of "module:qualified name" in the installed package; None if there is no function.

    The source is read without an import: the modules of inference engines cannot be imported without these engines.
    """
    module, _, path = name.partition(":")
    spec = None if is_module_missing(name) else find_spec(module)
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).read_text(encoding="utf-8")
    node = _find_definition(ast.parse(text), path.split("."))
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    source = textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))
    return {
        "signature": f"({ast.unparse(node.args)})",
        "sha256": hashlib.sha256(source.encode()).hexdigest()[:16],
    }


def _find_definition(node: ast.AST, path: list[str]) -> ast.AST | None:
    """Return the last definition of a qualified name below a node, also inside `if` and `try`."""
    if not path:
        return node
    found = None
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found = _find_definition(child, path) or found
        elif child.name == path[0]:
            found = _find_definition(child, path[1:]) or found
    return found


def package_version(name: str) -> str:
    """Return "package version" of a function's package, such as "ms-swift 4.6.0"."""
    top = name.partition(".")[0]
    package = "ms-swift" if top == "swift" else packages_distributions()[top][0]
    return f"{package} {version(package)}"


def compare(found: dict[str, PatchedFunction], record: Record) -> list[str]:
    """Return one line for each difference between the installed functions and the reviewed ones."""
    lines = []
    for name, function in sorted(found.items()):
        patches = ", ".join(sorted(function.patches))
        accepted = record.get(name, [])
        if is_module_missing(name):
            continue
        form = describe_function(name)
        if form is None:
            lines.append(f"{name}: no such function in {package_version(name)}; needed by {patches}")
        elif not accepted:
            lines.append(f"{name}{form['signature']}: not reviewed yet; replaced by {patches}")
        elif not any(form.items() <= each.items() for each in accepted):
            last = accepted[-1]
            what = "body changed"
            if form["signature"] != last["signature"]:
                what = f"signature {last['signature']} is now {form['signature']}"
            lines.append(f"{name}: {what} ({last['version']} -> {package_version(name)}); replaced by {patches}")
    lines += [f"{name}: no patch replaces it any more" for name in sorted(set(record) - set(found))]
    return lines


def update(found: dict[str, PatchedFunction], record: Record) -> Record:
    """Return the record with the installed forms accepted: one for each version of a package."""
    new = {}
    for name in sorted(found):
        if is_module_missing(name):
            new[name] = record.get(name, [])
            continue
        form = describe_function(name)
        if form is None:
            raise SystemExit(
                f"{name}: got none in {package_version(name)}, expected the function that a patch replaces"
            )
        installed = {**form, "version": package_version(name)}
        others = [each for each in record.get(name, []) if each["version"] != installed["version"]]
        if not any(form.items() <= each.items() for each in others):
            others.append(installed)
        new[name] = others
    return new


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the functions that patches replace with the reviewed ones.")
    parser.add_argument("--update", action="store_true", help=f"accept the installed functions, in {RECORD_FILE.name}")
    parser.add_argument("--list", action="store_true", help="print what was found as JSON")
    args = parser.parse_args()
    found, added = find_patched_functions()
    if args.list:
        functions = {name: [sorted(f.patches), sorted(f.places)] for name, f in found.items()}
        print(json.dumps({"functions": functions, "added": sorted(added)}))
        return 0
    record = json.loads(RECORD_FILE.read_text(encoding="utf-8")) if RECORD_FILE.is_file() else {}
    if args.update:
        RECORD_FILE.write_text(json.dumps(update(found, record), indent=1) + "\n", encoding="utf-8")
        return 0
    lines = compare(found, record)
    print("\n".join(lines))
    return int(bool(lines))


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[3])]
    sys.exit(main())
