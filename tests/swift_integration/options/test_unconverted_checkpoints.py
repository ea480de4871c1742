"""Chat models as their authors published them are told from others without reading weights."""

import subprocess
import sys

import pytest
import torch
from chat_models import chat_model

from himtok_plugin.swift_integration.options.unconverted_checkpoints import refuse_unconverted


@pytest.mark.parametrize("shards", [1, 2])
def test_one_that_holds_a_mask_tokenizer_is_refused_with_the_command_that_converts_it(tmp_path, shards):
    folder = chat_model().write(tmp_path / "source", shards=shards)
    with pytest.raises(ValueError, match=f"himtok convert {folder} InternVL2_5-HiMTok-8B-hf"):
        refuse_unconverted(str(folder))


def test_so_is_one_of_a_dtype_that_no_conversion_knows(tmp_path):
    model = chat_model()
    model.state = {key: value.to(torch.float8_e4m3fn) for key, value in model.state.items()}
    with pytest.raises(ValueError, match="himtok convert"):
        refuse_unconverted(str(model.write(tmp_path / "source")))


def test_so_is_one_in_a_single_bin_file(tmp_path):
    with pytest.raises(ValueError, match="himtok convert"):
        refuse_unconverted(str(chat_model().write(tmp_path / "source", suffix="bin")))
    refuse_unconverted(str(chat_model(with_masks=False).write(tmp_path / "others", suffix="bin")))


def test_so_is_one_with_shards_that_no_index_lists(tmp_path):
    folder = chat_model().write(tmp_path / "source", shards=2)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="himtok convert"):
        refuse_unconverted(str(folder))


@pytest.mark.parametrize("shards", [1, 2])
def test_others_are_not(tmp_path, shards):
    without_masks = chat_model(with_masks=False)
    without_masks.state["language_model.mask_decoder.weight"] = torch.zeros(1)
    refuse_unconverted(str(without_masks.write(tmp_path / "source", shards=shards)))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_that_is_cut_short_is_left_to_whoever_loads_it(tmp_path, name):
    folder = chat_model().write(tmp_path / "source", suffix=name.rpartition(".")[2])
    (folder / name).write_bytes(b"short")
    refuse_unconverted(str(folder))


def test_telling_needs_nothing_heavy_before_a_chat_model_is_met(tmp_path):
    code = (
        "import sys\n"
        "from himtok_plugin.swift_integration.options.unconverted_checkpoints import refuse_unconverted\n"
        f"refuse_unconverted({str(tmp_path)!r})\n"
        "print({'torch', 'transformers', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
