"""What is changed in ms-swift is what the table says, and `around` and `add` keep what they should."""

import inspect
import re

import pytest

from himtok_plugin.swift_integration import patches, register
from himtok_plugin.swift_integration.patches.replacing import REPLACED, add, around, is_replaced

# Replaced in some runs only: these trainers and evalscope are not loaded here.
LOG = "_apply_chat_template_to_messages_list"
LATER = {f"GRPOTrainer.{LOG}", f"GKDTrainer.{LOG}", "EvalArguments.list_eval_dataset"}


def test_table_lists_what_is_replaced():
    register.register()
    # The second column; the first is blank where the file is the one above.
    listed = re.findall(r"^(?:\w+)? +(\w+\.\w+)(?: \(new\))?  ", patches.__doc__, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert set(REPLACED) | LATER == set(listed)


def test_patches_are_applied_once():
    register.register()
    before = list(REPLACED)
    register.register()
    assert before == REPLACED


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
    before = list(REPLACED)
    yield type("Some", (Owner,), {})
    REPLACED[:] = before


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
    add(owner, "new")(lambda self: 1)
    assert owner().new() == 1
    with pytest.raises(RuntimeError, match=r"Some\.new"):
        add(owner, "new")(lambda self: 2)
