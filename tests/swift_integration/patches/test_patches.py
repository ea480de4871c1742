"""Patches are documented and applied once; `around` and `add` keep what they should."""

import inspect

import pytest
from swift.infer_engine import InferEngine

from himtok_plugin.swift_integration import patches, register
from himtok_plugin.swift_integration.patches.replacing import add, around, is_replaced

ROOMS = (
    patches.answering,
    patches.deploying,
    patches.evaluating,
    patches.loading,
    patches.rows,
    patches.saving,
    patches.training,
)
PATCHES = [
    function
    for room in ROOMS
    for name, function in vars(room).items()
    if inspect.isfunction(function) and function.__module__ == room.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_patch_says_what_it_changes_why_until_when_and_where_upstream(patch):
    heads = [line.partition(":")[0] for line in inspect.getdoc(patch).splitlines() if ":" in line]
    assert [head for head in heads if head in ("What", "Why", "Goes when", "Upstream")] == [
        "What",
        "Why",
        "Goes when",
        "Upstream",
    ]


def test_every_patch_is_applied():
    source = inspect.getsource(patches.apply)
    assert all(f".{patch.__name__}()" in source for patch in PATCHES)


def test_patches_are_applied_once():
    register.register()
    before = InferEngine.__init__
    assert is_replaced(InferEngine, "__init__")
    register.register()
    assert before is InferEngine.__init__


class Owner:
    def plain(self, number: int) -> int:
        """Double."""
        return 2 * number

    @classmethod
    def of_class(cls):
        return cls.__name__

    @staticmethod
    def static():
        return "static"


@pytest.fixture
def owner():
    return type("Some", (Owner,), {})


def test_replacement_is_given_what_stood_there(owner):
    @around(owner, "plain")
    def plain(original, self, number):
        return original(self, number) + 1

    assert owner().plain(3) == 7 and Owner().plain(3) == 6
    assert owner.plain.__doc__ == "Double." and str(inspect.signature(owner.plain)) == "(self, number: int) -> int"
    assert is_replaced(owner, "plain") and not is_replaced(Owner, "plain")


def test_replacements_stack(owner):
    for _ in range(2):
        around(owner, "plain")(lambda original, self, number: original(self, number) + 1)
    assert owner().plain(3) == 8


def test_class_and_static_methods_stay_such(owner):
    around(owner, "of_class")(lambda original, cls: original(cls).lower())
    around(owner, "static")(lambda original: original().upper())
    assert owner.of_class() == owner().of_class() == "some"
    assert owner.static() == owner().static() == "STATIC"


def test_another_ms_swift_is_noticed(owner):
    with pytest.raises(AttributeError, match="no_such"):
        around(owner, "no_such")(lambda original: None)
    add(owner, "new", hides=Owner.plain)(lambda self: 1)
    assert owner().new() == 1 and owner.new.__wrapped__ is Owner.plain
    with pytest.raises(RuntimeError, match=r"Some\.new"):
        add(owner, "new")(lambda self: 2)
