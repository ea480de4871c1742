"""The authors' unconverted checkpoint is recognised without reading weights."""

import subprocess
import sys

import pytest
import torch
from chat_models import chat_model

from himtok_plugin.swift_integration.options.unconverted_checkpoints import refuse_unconverted


@pytest.mark.parametrize("shards", [1, 2])
def test_chat_model_with_a_mask_tokenizer_is_refused_with_the_command_that_converts_it(tmp_path, shards):
    folder = chat_model().write(tmp_path / "source", shards=shards)
    with pytest.raises(ValueError, match=f"himtok convert {folder} InternVL2_5-HiMTok-8B-hf"):
        refuse_unconverted(str(folder))


def test_chat_model_with_an_unsupported_dtype_is_refused_too(tmp_path):
    model = chat_model()
    model.state = {key: value.to(torch.float8_e4m3fn) for key, value in model.state.items()}
    with pytest.raises(ValueError, match="himtok convert"):
        refuse_unconverted(str(model.write(tmp_path / "source")))


def test_chat_model_in_a_single_bin_file_is_refused_too(tmp_path):
    with pytest.raises(ValueError, match="himtok convert"):
        refuse_unconverted(str(chat_model().write(tmp_path / "source", suffix="bin")))
    refuse_unconverted(str(chat_model(with_masks=False).write(tmp_path / "others", suffix="bin")))


def test_chat_model_with_shards_but_no_index_is_refused_too(tmp_path):
    folder = chat_model().write(tmp_path / "source", shards=2)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="himtok convert"):
        refuse_unconverted(str(folder))


@pytest.mark.parametrize("shards", [1, 2])
def test_chat_model_without_a_mask_tokenizer_is_accepted(tmp_path, shards):
    without_masks = chat_model(with_masks=False)
    without_masks.state["language_model.mask_decoder.weight"] = torch.zeros(1)
    refuse_unconverted(str(without_masks.write(tmp_path / "source", shards=shards)))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_truncated_file_is_left_to_the_model_loader(tmp_path, name):
    folder = chat_model().write(tmp_path / "source", suffix=name.rpartition(".")[2])
    (folder / name).write_bytes(b"short")
    refuse_unconverted(str(folder))


def test_check_of_another_folder_imports_no_heavy_package(tmp_path):
    code = (
        "import sys\n"
        "from himtok_plugin.swift_integration.options.unconverted_checkpoints import refuse_unconverted\n"
        f"refuse_unconverted({str(tmp_path)!r})\n"
        "print({'torch', 'transformers', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
