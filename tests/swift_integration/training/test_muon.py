"""`--optimizer muon_adamw` steps as `torch.optim.Muon` and `torch.optim.AdamW` do, in one optimizer."""

import copy

import pytest
import torch
from runs import STAGE_TWO, sft
from safetensors.torch import load_file
from torch import nn

from himtok_plugin.mask_tokenizer import build_mask_tokenizer
from himtok_plugin.swift_integration.training.learning_rates import move_to_own_groups
from himtok_plugin.swift_integration.training.muon import (
    KernelMuon,
    MuonAndAdamW,
    find_hidden_weights,
    orthogonalize,
)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))


def groups(net: nn.Module) -> tuple[list, list]:
    matrices = [p for p in net.parameters() if p.ndim == 2]
    others = [p for p in net.parameters() if p.ndim != 2]
    return [{"params": matrices, "weight_decay": 0.1}], [{"params": others, "weight_decay": 0.0}]


def steps(net: nn.Module, optimizers: list, count: int = 3) -> None:
    torch.manual_seed(1)
    for _ in range(count):
        net(torch.randn(5, 6)).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()


def test_is_torchs_muon_on_matrices_and_torchs_adamw_on_the_rest():
    ours, theirs = model(), model()
    steps(ours, [MuonAndAdamW(*groups(ours), lr=0.01, betas=(0.9, 0.95))])
    muon, adamw = groups(theirs)
    pair = [
        torch.optim.Muon(muon, lr=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(adamw, lr=0.01, betas=(0.9, 0.95)),
    ]
    steps(theirs, pair)
    for start, mine, other in zip(model().parameters(), ours.parameters(), theirs.parameters(), strict=True):
        # torch orthogonalizes in bfloat16
        assert (mine - other).norm() < 0.03 * (other - start).norm()


def test_orthogonalized_matrices_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 5, 8), (2, 9, 4)):
        made = orthogonalize(torch.randn(shape))
        assert made.shape == shape and made.dtype == torch.float32
        values = torch.linalg.svdvals(made)
        assert values.min() > 0.5 and values.max() < 1.3


def test_kernel_is_stepped_as_its_matrix():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(4, 3, 2, 2))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    pair = [KernelMuon([{"params": [parameter], "weight_decay": 0.1}], lr=0.01) for parameter in (kernel, matrix)]
    for _ in range(3):
        kernel.grad = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
        matrix.grad = kernel.grad.flatten(1)
        for optimizer in pair:
            optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_kernels_are_stepped_as_torchs_muon_steps_their_2d_views():
    # With such views, torch's Muon could replace ours; the docstring of muon.py says why it does not.
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((8, 4, 3, 3), (16, 8, 1, 1), (6, 10))]
    ours, theirs = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    views = [nn.Parameter(parameter.detach().flatten(1)) for parameter in theirs]
    pair = [
        KernelMuon([{"params": ours, "weight_decay": 0.1}], lr=0.01),
        torch.optim.Muon(views, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(5):
        for parameter, view in zip(ours, views, strict=True):
            parameter.grad = torch.randn_like(parameter)
            view.grad = parameter.grad.flatten(1)
        for optimizer in pair:
            optimizer.step()
    for value, mine, other in zip(start, ours, theirs, strict=True):
        # The views share the kernels' memory. torch orthogonalizes in bfloat16, hence the tolerance.
        assert not torch.equal(other, value)
        assert (mine - other).norm() < 0.03 * (other - value).norm()


def test_codes_and_layers_of_pixels_are_left_to_adamw():
    tokenizer = build_mask_tokenizer("tiny")
    hidden = find_hidden_weights(tokenizer)
    chosen = {name for name, parameter in tokenizer.named_parameters() if id(parameter) in hidden}
    assert {"encoder.transformer.0.attn.in_proj_weight", "pixel_decoder.conv_in.weight"} <= chosen
    outside = ("quantize.", "encoder.patch_embed.", "encoder.conv_out.", "pixel_decoder.conv_out.")
    assert not any(name.startswith(outside) or name.endswith("bias") for name in chosen)


def test_state_goes_through_a_checkpoint():
    whole, half = model(), model()
    steps(whole, [MuonAndAdamW(*groups(whole), lr=0.01)], count=2)
    first = MuonAndAdamW(*groups(half), lr=0.01)
    steps(half, [first], count=2)
    second = MuonAndAdamW(*groups(half), lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    reference = copy.deepcopy(half)
    third = MuonAndAdamW(*groups(reference), lr=0.01)
    third.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(half, [second])
    steps(reference, [third])
    fresh = copy.deepcopy(whole)
    steps(fresh, [MuonAndAdamW(*groups(fresh), lr=0.01)])
    for mine, other, forgetful in zip(half.parameters(), reference.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, other) and not torch.equal(mine, forgetful)


def test_schedules_and_own_groups_reach_both_parts():
    net = model()
    before = copy.deepcopy(net)
    optimizer = MuonAndAdamW(*groups(net), lr=0.01)
    move_to_own_groups(optimizer, net[2].parameters(), 0.0)
    steps(net, [optimizer])
    assert torch.equal(net[2].weight, before[2].weight) and torch.equal(net[2].bias, before[2].bias)
    assert not torch.equal(net[0].weight, before[0].weight) and not torch.equal(net[0].bias, before[0].bias)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    stopped = copy.deepcopy(net)
    steps(net, [optimizer])
    scheduler.step()
    for mine, other in zip(net.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_embeddings_and_logits_are_left_to_adamw(world):
    from transformers import AutoModelForImageTextToText

    lmm = AutoModelForImageTextToText.from_pretrained(world.lmm)
    hidden = find_hidden_weights(lmm)
    names = {name for name, parameter in lmm.named_parameters() if id(parameter) in hidden}
    assert any("vision_tower" in name for name in names) and any("language_model" in name for name in names)
    assert not any("lm_head" in name or "embed" in name or "norm" in name or "bias" in name for name in names)


def test_trains_and_resumes_bit_for_bit(train, tmp_path):
    options = {**STAGE_TWO, "optimizer": "muon_adamw", "save_strategy": "steps", "save_steps": 2}
    train(max_steps=4, output_dir=tmp_path / "whole", **options)
    train(max_steps=2, output_dir=tmp_path / "half", **options)
    rest = {"output_dir": tmp_path / "rest", "resume_from_checkpoint": tmp_path / "half" / "checkpoint-2"}
    train(max_steps=4, **rest, **options)
    for file in ("model.safetensors", "mask_tokenizer/model.safetensors"):
        whole, rest = (load_file(tmp_path / name / "checkpoint-4" / file) for name in ("whole", "rest"))
        assert all(torch.equal(value, rest[name]) for name, value in whole.items()), file


def test_trains_a_mask_tokenizer(world, tmp_path):
    options = {"output_dir": tmp_path / "out", "max_steps": 2, "optimizer": "muon_adamw"}
    result = sft(model=world.mask_tokenizer, dataset=world.mask_rows, **options)
    assert [entry["loss"] > 0 for entry in result["log_history"] if "loss" in entry] == [True, True]


def test_sharded_parameters_are_refused(train, monkeypatch):
    from himtok_plugin.swift_integration.training.trainer import MaskTrainer

    create = MaskTrainer.create_optimizer

    def sharded(self, *args, **kwargs):
        self.is_deepspeed_enabled = True
        return create(self, *args, **kwargs)

    monkeypatch.setattr(MaskTrainer, "create_optimizer", sharded)
    with pytest.raises(ValueError, match="optimizer='muon_adamw': got DeepSpeed or FSDP"):
        train(optimizer="muon_adamw", **STAGE_TWO)
