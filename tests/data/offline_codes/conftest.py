"""Mask tokenizers for the tests of `himtok tokenize`."""

import pytest
from coded_rows import observed, trained


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    """Relative paths start from the working directory, even if a test of ms-swift set this variable."""
    monkeypatch.delenv("ROOT_IMAGE_DIR", raising=False)


@pytest.fixture
def folder(tmp_path):
    """The folder of a tiny mask tokenizer."""
    trained().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def tokenizer():
    """The same, loaded; `encoded` records the number of squares of each call of `encode`."""
    return observed(trained())
