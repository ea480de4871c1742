"""The tables of options and patches say what the code says."""

import ast

import pytest
from generate_tables import DOCS, PATCH_PARTS, PATCHES, TABLES, patch_docstrings, with_table


@pytest.mark.parametrize("page", TABLES)
def test_the_table_is_what_the_code_says(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    marker, make_table = TABLES[page]
    assert text == with_table(text, marker, make_table()), "run `python tests/docs/generate_tables.py`"


def applied_patches():
    """`file.function` of every patch that `patches.apply` calls."""
    tree = ast.parse((PATCHES / "__init__.py").read_text(encoding="utf-8"))
    (apply,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "apply")
    calls = [node.func for node in ast.walk(apply) if isinstance(node, ast.Call)]
    return {ast.unparse(call) for call in calls if isinstance(call, ast.Attribute)}


def test_every_patch_that_is_applied_says_what_why_and_until_when():
    found = patch_docstrings()
    assert applied_patches() == found.keys()
    assert all(set(PATCH_PARTS[:3]) <= parts.keys() for parts in found.values())
