"""The functions of ms-swift, transformers and accelerate that patches replace are those that were reviewed."""

import json
import re
import subprocess
import sys

import pytest
from patched_functions import (
    RECORD_FILE,
    PatchedFunction,
    compare,
    describe_function,
    has_evalscope,
    has_gradio,
    update,
)

from himtok_plugin.swift_integration import patches

COMMAND = "python tests/swift_integration/patches/patched_functions.py --update"


@pytest.fixture(scope="module")
def installed():
    """What a fresh process finds after it has applied all patches, also those of `swift eval`, `swift app` and GRPO."""
    if not (has_evalscope() and has_gradio()):
        pytest.skip("needs evalscope and gradio, whose presence decides which patches apply")
    program = RECORD_FILE.with_suffix(".py")
    result = subprocess.run([sys.executable, program, "--list"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    functions = {
        name: PatchedFunction(set(dependent), set(places)) for name, (dependent, places) in found["functions"].items()
    }
    return functions, set(found["added"])


def test_replaced_functions_are_those_that_were_reviewed(installed):
    changes = compare(installed[0], json.loads(RECORD_FILE.read_text(encoding="utf-8")))
    assert not changes, (
        "\n".join(["functions that patches depend on have changed:", *changes])
        + f"\nRead what changed in each, and the patch. Once the patches are right, accept the changes: {COMMAND}"
    )


def test_table_lists_what_is_replaced(installed):
    functions, added = installed
    # The second column; the first is blank where the file is the one above.
    listed = re.findall(r"^(?:\w+)? +(\w+\.\w+)(?: \(new\))?  ", patches.__doc__, re.MULTILINE)
    replaced = {place for function in functions.values() for place in function.places} | added
    of_options = {place for place in replaced if place.startswith(("TemplateArguments.", "BaseArguments."))}
    assert len(set(listed)) == len(listed)
    assert replaced - of_options == set(listed)
    assert added == {"TemplateArguments.__setstate__", "RowPreprocessor.__reduce_ex__"}  # they hide no function


NAME = "json.encoder:JSONEncoder.encode"  # stands for a function that a patch replaces


@pytest.fixture
def reviewed(monkeypatch):
    monkeypatch.setattr("patched_functions.package_version", lambda name: "stdlib 2")
    found = {NAME: PatchedFunction({"patches/some.py: change"})}
    return found, update(found, {})


def test_unchanged_function_is_accepted(reviewed):
    found, record = reviewed
    assert compare(found, record) == []
    assert describe_function(NAME)["signature"] == "(self, o)"


def test_changed_signature_names_old_new_and_patch(reviewed):
    found, record = reviewed
    record[NAME] = [{"signature": "(self)", "sha256": "0", "version": "stdlib 1"}]
    (line,) = compare(found, record)
    assert line == (
        f"{NAME}: signature (self) is now (self, o) (stdlib 1 -> stdlib 2); replaced by patches/some.py: change"
    )


def test_changed_body_is_named(reviewed):
    found, record = reviewed
    record[NAME][0]["sha256"] = "0"
    (line,) = compare(found, record)
    assert line.startswith(f"{NAME}: body changed")


def test_missing_unreviewed_and_stale_functions_are_named(reviewed):
    found, record = reviewed
    missing = {"json.encoder:NoSuch.method": PatchedFunction({"patches/some.py: change"})}
    lines = compare({**found, **missing}, {"json.encoder:JSONEncoder.old": record[NAME]})
    assert [line.partition("; ")[0] for line in lines] == [
        f"{NAME}(self, o): not reviewed yet",
        "json.encoder:NoSuch.method: no such function in stdlib 2",
        "json.encoder:JSONEncoder.old: no patch replaces it any more",
    ]


def test_update_keeps_the_forms_of_other_versions(reviewed):
    found, record = reviewed
    older = {"signature": "(self)", "sha256": "0", "version": "stdlib 1"}
    outdated = {"signature": "(self)", "sha256": "1", "version": "stdlib 2"}
    record[NAME] = [older, outdated]
    accepted = update(found, record)[NAME]
    assert accepted[0] == older and len(accepted) == 2 and accepted[1]["signature"] == "(self, o)"
    assert compare(found, {NAME: accepted}) == []


def test_form_that_another_version_has_is_not_stored_again(reviewed):
    found, record = reviewed
    record[NAME][0]["version"] = "stdlib 1"
    assert update(found, record) == record
