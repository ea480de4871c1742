"""Tokenizers of the tests of `himtok tokenize`."""

import pytest
from coded_rows import observed, trained


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    """Relative paths start from the working directory, whatever tests of ms-swift left behind."""
    monkeypatch.delenv("ROOT_IMAGE_DIR", raising=False)


@pytest.fixture
def folder(tmp_path):
    """Folder of a tiny tokenizer."""
    trained().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def tokenizer():
    """The same; `encoded` holds the number of squares of each call of `encode`."""
    return observed(trained())
