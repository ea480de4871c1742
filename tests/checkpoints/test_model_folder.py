"""Folders of models, adapters and resumed trainings: every file that would be loaded is looked at first."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from test_file_contents import PAGE, POINTER

from himtok_plugin.checkpoints.model_folder import (
    check_adapter_folder,
    check_model_folder,
    check_training_checkpoint,
    find_last_whole_checkpoint,
)


def write_model(folder, shards=1):
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "generation_config.json", "args.json"):
        (folder / name).write_text(json.dumps({"model_type": "tiny"}))
    (folder / "merges.txt").write_text("a b\n")
    names = ["model.safetensors"] if shards == 1 else [f"model-{n:05d}-of-{shards:05d}.safetensors" for n in (1, 2, 3)]
    for i, name in enumerate(names):
        save_file({f"w{i}": torch.zeros(8)}, folder / name)
    if shards > 1:
        weight_map = {f"w{i}": name for i, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def write_checkpoint(folder):
    write_model(folder)
    write_model(folder / "mask_tokenizer")
    torch.save({"state": torch.zeros(4)}, folder / "optimizer.pt")
    torch.save({"state": 1}, folder / "scheduler.pt")
    torch.save({"python": 1}, folder / "rng_state.pth")
    (folder / "args.json").write_text(json.dumps({"save_only_model": False}))
    (folder / "trainer_state.json").write_text("{}")
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize("place", ["", "mask_tokenizer"])
@pytest.mark.parametrize("content", [POINTER, PAGE, b""], ids=["pointer", "page", "empty"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_stranger_in_a_model_is_named_with_its_path(tmp_path, place, content, name):
    model = write_model(tmp_path / "model")
    write_model(model / "mask_tokenizer")
    check_model_folder(model)
    (model / place / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{model / place / name}: got (a git-lfs pointer|a web page|an empty file)"):
        check_model_folder(model)


def test_missing_shards_and_a_missing_index_are_named(tmp_path):
    model = write_model(tmp_path / "model", shards=3)
    check_model_folder(model)
    (model / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"index.json lists \['model-00002-of-00003.safetensors'\], which are missing"):
        check_model_folder(model)
    (model / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"got no model-00002-of-00003.safetensors, expected all 3 files"):
        check_model_folder(model)
    save_file({"w": torch.zeros(1)}, model / "model-00002-of-00003.safetensors")
    with pytest.raises(ValueError, match=r"without model.safetensors.index.json"):
        check_model_folder(model)


def test_files_that_are_not_loaded_do_not_matter(tmp_path):
    model = write_model(tmp_path / "model")
    for name in ("notes.json", "pytorch_model.bin", "model-00001-of-00002.safetensors", "old.pth"):
        (model / name).write_bytes(PAGE)
    check_model_folder(model)


def test_an_adapter_needs_its_weights(tmp_path):
    folder = tmp_path / "adapter"
    check_adapter_folder(tmp_path)  # no adapter
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="an adapter without weights, expected adapter_model.safetensors"):
        check_adapter_folder(folder)
    save_file({"w": torch.zeros(8)}, folder / "adapter_model.safetensors")
    check_adapter_folder(folder)
    cut(folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="adapter_model.safetensors: got a file that is cut off"):
        check_adapter_folder(folder)
    (folder / "adapter_config.json").write_bytes(POINTER)
    with pytest.raises(ValueError, match="adapter_config.json: got a git-lfs pointer"):
        check_adapter_folder(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "args.json", "trainer_state.json"),
        *("mask_tokenizer/model.safetensors", "mask_tokenizer/config.json"),
    ],
)
def test_a_checkpoint_with_a_cut_file_is_broken_and_the_one_before_it_is_the_last_whole_one(tmp_path, name):
    first, second = (write_checkpoint(tmp_path / f"checkpoint-{step}") for step in (9, 10))
    assert find_last_whole_checkpoint(tmp_path) == second
    cut(second / name)
    with pytest.raises(ValueError, match=name):
        check_training_checkpoint(second)
    assert find_last_whole_checkpoint(tmp_path) == first


def test_files_of_others_do_not_make_a_checkpoint_broken(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint-1")
    (folder / "notes.json").touch()
    (folder / ".cache").mkdir()
    (folder / ".cache" / "blob.bin").write_bytes(b"\0raw")
    (folder / "loop").symlink_to(folder)
    check_training_checkpoint(folder)


def test_an_interrupted_checkpoint_has_no_trainer_state(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint-2")
    (folder / "trainer_state.json").unlink()
    with pytest.raises(ValueError, match="got no trainer_state.json, which is written last"):
        check_training_checkpoint(folder)
    assert find_last_whole_checkpoint(tmp_path) is None
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="got no such folder"):
        check_training_checkpoint(folder)


def test_a_checkpoint_without_an_optimizer_is_refused_unless_it_was_saved_so(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint-2")
    (folder / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="got no optimizer.pt"):
        check_training_checkpoint(folder)
    (folder / "args.json").write_text(json.dumps({"save_only_model": True}))
    check_training_checkpoint(folder)
