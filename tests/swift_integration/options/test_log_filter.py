"""The log of ms-swift has no warning of custom code where there is none, and no tree of modules."""

import json
import logging

import pytest
import torch

from himtok_plugin.swift_integration.options.log_filter import LogFilter


def filtered(message: str, level: int = logging.INFO) -> str | None:
    """What of a message is left; None if nothing."""
    record = logging.LogRecord("swift", level, __file__, 1, message, None, None)
    return record.getMessage() if LogFilter().filter(record) else None


def warning_of(folder) -> str:
    # The beginnings and the end are those of swift/model/register.py and model_meta.py.
    return f"Loading tokenizer/processor from {str(folder)!r} with trust_remote_code=True. Custom Python code from …"


def test_folder_without_code_has_no_warning_of_code(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl"}))
    assert filtered(warning_of(tmp_path), logging.WARNING) is None


@pytest.mark.parametrize("name", ["modeling_other.py", "config.json"])
def test_folder_with_code_or_with_the_name_of_code_keeps_the_warning(tmp_path, name):
    (tmp_path / name).write_text(json.dumps({"auto_map": {"AutoModel": "somebody/repo--modeling.Model"}}))
    assert filtered(warning_of(tmp_path), logging.WARNING) == warning_of(tmp_path)


def test_model_on_a_hub_keeps_the_warning():
    assert filtered(warning_of("org/name"), logging.WARNING) == warning_of("org/name")


def test_tree_of_modules_is_the_name_of_the_model():
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    assert filtered(f"model: {model}") == "model: Sequential (LOG_LEVEL=DEBUG shows its modules)"


def test_other_lines_stay():
    assert filtered("model_kwargs: {'dtype': 1}") == "model_kwargs: {'dtype': 1}"
