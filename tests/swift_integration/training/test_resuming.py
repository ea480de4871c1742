"""A resumed run equals the whole one to the last bit; a full disk costs the checkpoint that it hits, no other one."""

import os
import resource
import shutil

import pytest
import torch
from runs import LMM, STAGE_TWO, logged, sft
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from himtok_plugin.checkpoints.model_folder import find_last_whole_checkpoint
from himtok_plugin.lmm.aligned_weights import ALIGNMENT, align_weights

LORA = {"tuner_type": "lora", "lora_rank": 4, "lora_dropout": 0.1}
STAGES = {
    "stage 1": {},
    "stage 2, full": {**STAGE_TWO, **LMM},
    "stage 2, LoRA": {**STAGE_TWO, **LORA},
    "stage 3, full": LMM,
    "stage 3, LoRA": LORA,
}


def train(world, stage, output, **options):
    common = {"output_dir": output, "save_strategy": "steps", "save_steps": 2, "max_steps": 4, "fp16": False}
    if stage == "stage 1":
        common |= {"model": world.mask_tokenizer, "dataset": world.mask_rows}
    else:
        common |= {"model": world.lmm, "mask_tokenizer": world.mask_tokenizer, "dataset": world.scenes}
    return sft(**{**common, "lr_scheduler_type": "cosine", **STAGES[stage], **options})


def move_tensors(folder):
    """Make the headers of all weights longer, so that tensors are mapped to other addresses."""
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = {name: value.clone() for name, value in load_file(path).items()}
        save_file(tensors, path, {**metadata, "longer": "x" * 20})


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_equals_the_whole_one_bit_for_bit(world, tmp_path, monkeypatch, stage):
    from transformers import Trainer

    unaligned = []

    def record(self, *args, **kwargs):
        tensors = (*self.model.parameters(), *self.model.buffers())
        unaligned.append(sum(tensor.data_ptr() % ALIGNMENT != 0 for tensor in tensors))
        return train_with_transformers(self, *args, **kwargs)

    train_with_transformers = Trainer.train
    monkeypatch.setattr(Trainer, "train", record)
    whole = train(world, stage, tmp_path / "whole")
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    move_tensors(checkpoint)
    rest = train(world, stage, tmp_path / "rest", resume_from_checkpoint=checkpoint)
    assert unaligned == [0, 0]
    for key in ("loss", "grad_norm"):
        assert logged(rest, key)[-2:] == logged(whole, key)[-2:]
    files = [
        path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "checkpoint-4").rglob("*.safetensors")
    ]
    assert files
    for file in files:
        one, other = load_file(tmp_path / "whole" / file), load_file(tmp_path / "rest" / file)
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items()), file


def test_weights_that_are_mapped_from_a_file_are_aligned_and_stay_shared(tmp_path):
    save_file({"weight": torch.arange(12.0).reshape(3, 4)}, tmp_path / "a.safetensors", {"longer": "x" * 4})
    mapped = load_file(tmp_path / "a.safetensors")["weight"]
    one, other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    memory = torch.empty(64)
    start = (-memory.data_ptr() % ALIGNMENT) // 4 + 1  # never aligned
    shifted = memory[start : start + 12].view(3, 4).copy_(mapped)
    one.weight, other.weight = torch.nn.Parameter(shifted), torch.nn.Parameter(shifted)
    kept = one.bias.data_ptr()
    align_weights(torch.nn.Sequential(one, other))
    assert one.weight.data_ptr() % ALIGNMENT == 0 and one.weight.data_ptr() == other.weight.data_ptr()
    assert torch.equal(one.weight, mapped) and one.bias.data_ptr() == kept


class limited_file_size:
    """Let no file of this process grow beyond a number of bytes, as on a full disk."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


FULL_AT = {  # file that does not fit any more -> its share of the size of that file that does
    "model.safetensors": 0.5,
    "optimizer.pt": 0.7,
    "mask_tokenizer/model.safetensors": 0.5,
}


@pytest.mark.parametrize("file", FULL_AT)
def test_a_full_disk_leaves_the_last_whole_checkpoint_and_names_it(world, tmp_path, monkeypatch, file):
    from swift.trainers.mixin import SwiftMixin

    from himtok_plugin.swift_integration.patches import saving

    save, logged_errors = SwiftMixin._save_checkpoint, []
    monkeypatch.setattr(saving.logger, "error", logged_errors.append)
    run, stage = tmp_path / "run", "stage 2, full"

    def save_on_a_full_disk(self, *args, **kwargs):
        if self.state.global_step < 4:
            return save(self, *args, **kwargs)
        with limited_file_size(int(os.path.getsize(run / "checkpoint-2" / file) * FULL_AT[file])):
            return save(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SwiftMixin, "_save_checkpoint", save_on_a_full_disk)
        with pytest.raises(Exception, match="(?i)too ?large|unexpected pos"):  # of safetensors and of torch
            train(world, stage, run, save_total_limit=1)
    (message,) = logged_errors
    assert "checkpoint-4 is incomplete" in message
    assert f"resume from the last whole one, {run / 'checkpoint-2'}" in message
    assert (run / "checkpoint-4").is_dir() and find_last_whole_checkpoint(run) == run / "checkpoint-2"
    with pytest.raises(ValueError, match=rf"resume_from_checkpoint: .*; the last whole one is {run / 'checkpoint-2'}"):
        train(world, stage, run, resume_from_checkpoint=run / "checkpoint-4")
    train(world, stage, run, resume_from_checkpoint=run / "checkpoint-2", save_total_limit=1)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-4"]
    assert find_last_whole_checkpoint(run) == run / "checkpoint-4"


def test_a_broken_checkpoint_is_deleted_before_whole_ones(world, tmp_path):
    run, stage = tmp_path / "run", "stage 1"
    train(world, stage, run, max_steps=2)
    shutil.copytree(run / "checkpoint-2", run / "checkpoint-3")
    (run / "checkpoint-3" / "trainer_state.json").unlink()
    train(world, stage, run, resume_from_checkpoint=run / "checkpoint-2", save_total_limit=2)
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


def test_replacing_a_checkpoint_on_a_full_disk_leaves_no_mixture(world, tmp_path, monkeypatch):
    """The old trainer_state.json would make half a checkpoint look whole."""
    from transformers import Trainer

    run, stage = tmp_path / "run", "stage 1"
    train(world, stage, run)

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(OSError, match="No space left"):
        train(world, stage, run, resume_from_checkpoint=run / "checkpoint-2")
    assert find_last_whole_checkpoint(run) == run / "checkpoint-2"
