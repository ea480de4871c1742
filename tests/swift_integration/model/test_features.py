"""Features of ms-swift's training work with masks in the batch."""

import numpy as np
import pytest
import torch
from PIL import Image
from runs import STAGE_TWO, export, logged, mask_of, read_rows, write_rows
from safetensors.torch import load_file

from himtok_plugin import MaskTokenizer

TERMS = ("loss", "loss_next_token", "loss_mask_bce", "loss_mask_dice", "loss_mask_hierarchical")


def close(one, other, tolerance=1e-4):
    for term in TERMS:
        assert logged(one, term) == pytest.approx(logged(other, term), rel=tolerance), term


@pytest.mark.parametrize("codes", [False, True], ids=["masks", "masks and codes"])
def test_cached_dataset_trains_like_the_rows_it_was_made_of(train, world, tmp_path, codes):
    rows = read_rows(world.scenes)[:4]
    if codes:
        from himtok_plugin.data.samples import load_squares

        tokenizer = MaskTokenizer.from_pretrained(world.mask_tokenizer)
        for row in rows:
            squares = load_squares(dict(enumerate(row["masks"])), 16, None, "row")
            row["mask_codes"] = tokenizer.encode(torch.from_numpy(squares).float() / 255).tolist()
    path = write_rows(tmp_path / "rows.jsonl", rows)
    order = {"train_dataloader_shuffle": False, "dataset_shuffle": False, "max_steps": 1}
    plain = train(dataset=path, output_dir=tmp_path / "plain", **order, **STAGE_TWO)
    export(
        model=world.lmm,
        mask_tokenizer=world.mask_tokenizer,
        dataset=path,
        dataset_shuffle=False,
        to_cached_dataset=True,
        split_dataset_ratio=0,
        output_dir=tmp_path / "cached",
        **STAGE_TWO,
    )
    cached = train(
        dataset=None, cached_dataset=tmp_path / "cached" / "train", output_dir=tmp_path / "from", **order, **STAGE_TWO
    )
    close(cached, plain)


@pytest.fixture
def encoders(monkeypatch):
    """The encoder of every run in this test, in order."""
    from himtok_plugin.swift_integration.training.trainer import MaskTrainer

    found = []
    train = MaskTrainer.train
    monkeypatch.setattr(
        MaskTrainer, "train", lambda self, *args: found.append(self.mask_tokenizer.encoding) or train(self, *args)
    )
    return found


def coded(rows):
    return [{**row, "mask_codes": [[1, 2, 3, 4]] * len(row["masks"])} for row in rows]


@pytest.mark.parametrize("options", [STAGE_TWO, {}, {"tuner_type": "lora", "target_modules": "all-linear"}], ids=str)
def test_codes_made_offline_load_no_encoder_and_the_checkpoint_has_it_all_the_same(
    train, world, tmp_path, encoders, options
):
    rows = coded(read_rows(world.scenes))
    result = train(rows, save_strategy="steps", save_steps=1, **options)
    assert logged(result, "loss")
    (encoder,) = encoders
    assert not encoder.is_loaded
    saved, before = (
        MaskTokenizer.from_pretrained(p) for p in (tmp_path / "out" / "checkpoint-1", world.mask_tokenizer)
    )
    state = before.state_dict()
    moved = {name.split(".")[0] for name, value in saved.state_dict().items() if not torch.equal(value, state[name])}
    assert moved == ({"decoder", "pixel_decoder"} if options is STAGE_TWO else set())
    assert saved.config.to_dict() == {**before.config.to_dict(), "_name_or_path": saved.config._name_or_path}


def test_lmm_in_training_holds_no_encoder(train, world, monkeypatch):
    from himtok_plugin.swift_integration.training.trainer import MaskTrainer

    names = []
    init = MaskTrainer.__init__

    def observed(self, *args, **kwargs):
        names.extend(name for name, _ in kwargs["model"].named_parameters())
        init(self, *args, **kwargs)

    monkeypatch.setattr(MaskTrainer, "__init__", observed)
    train(**STAGE_TWO)
    parts = {name.split("mask_tokenizer.")[1].split(".")[0] for name in names if "mask_tokenizer." in name}
    assert parts == {"quantize", "decoder", "pixel_decoder"}


def test_first_mask_without_codes_loads_the_encoder(train, world, encoders):
    rows = read_rows(world.scenes)[:4]
    train([*coded(rows[:3]), rows[3]], **STAGE_TWO)
    assert encoders[0].is_loaded


def test_mask_tokenizer_that_is_deleted_while_it_trains_is_saved_whole(train, world, tmp_path, monkeypatch):
    import shutil

    from himtok_plugin.swift_integration.training.trainer import MaskTrainer

    source = shutil.copytree(world.mask_tokenizer, tmp_path / "copy")
    run = MaskTrainer.train
    monkeypatch.setattr(MaskTrainer, "train", lambda self, *args: shutil.rmtree(source) or run(self, *args))
    rows = coded(read_rows(world.scenes))
    train(rows, mask_tokenizer=source, save_strategy="steps", save_steps=1, **STAGE_TWO)
    saved, before = (
        MaskTokenizer.from_pretrained(p) for p in (tmp_path / "out" / "checkpoint-1", world.mask_tokenizer)
    )
    state = before.encoder.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in saved.encoder.state_dict().items())


def test_mask_tokenizer_with_an_encoder_of_another_size_is_refused_before_training(train, world, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(world.mask_tokenizer, tmp_path / "wrong")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "encoder_layers": 3}))
    with pytest.raises(ValueError, match=r"wrong': got weights that do not fit its config.json: \['encoder\."):
        train(coded(read_rows(world.scenes)), mask_tokenizer=folder, **STAGE_TWO)


def test_gradient_checkpointing_changes_nothing(train):
    plain, saving = (train(gradient_checkpointing=on, **STAGE_TWO) for on in (False, True))
    close(saving, plain, 1e-3)


def test_half_precision_is_close_to_single(train):
    single = train(attn_impl="eager", **STAGE_TWO)
    half = train(attn_impl="eager", torch_dtype="float32", bf16=True, fp16=False, use_cpu=True, **STAGE_TWO)
    close(half, single, 5e-2)


def test_loss_scale_weighs_words_beside_the_mask_losses(train, world):
    """A weight of the answer's words, as rows may have it; what closes the answer keeps its own."""
    rows = [world.segment(world.left)] * 4
    heavy = [{**row, "messages": [row["messages"][0], {**row["messages"][1], "loss_scale": 3.0}]} for row in rows]
    plain, scaled = (train(each, is_binary_loss_scale=False, **STAGE_TWO) for each in (rows, heavy))
    for term in ("loss_mask_bce", "loss_mask_dice", "loss_mask_hierarchical"):
        assert logged(scaled, term) == pytest.approx(logged(plain, term), rel=1e-4), term
    (once,), (thrice,) = (logged(result, "loss_next_token") for result in (plain, scaled))
    assert 2.5 * once < thrice < 3 * once
    assert logged(scaled, "loss")[0] - logged(plain, "loss")[0] == pytest.approx(thrice - once, rel=1e-3)


def test_max_num_limits_the_tiles_of_internvl_in_the_hf_layout(train, world, tmp_path, monkeypatch):
    from transformers import AutoProcessor

    from himtok_plugin.swift_integration.training.trainer import MaskTrainer

    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "wide.png")
    row = {**world.segment(mask_of(32, 64, 0, 8, 0, 8)), "images": [str(tmp_path / "wide.png")]}
    prepare, tiles = MaskTrainer._prepare_inputs, []

    def recorded(self, inputs):
        tiles.append(len(inputs["pixel_values"]))
        return prepare(self, inputs)

    monkeypatch.setattr(MaskTrainer, "_prepare_inputs", recorded)
    train([row])
    monkeypatch.setenv("MAX_NUM", "2")
    train([row], save_strategy="steps", save_steps=1)
    assert tiles == [1, 3]  # two and a thumbnail
    saved = AutoProcessor.from_pretrained(tmp_path / "out" / "checkpoint-1").image_processor
    assert (saved.min_patches, saved.max_patches) == (1, 2)
    monkeypatch.setenv("MAX_NUM", "two")
    with pytest.raises(ValueError, match="MAX_NUM: got 'two', expected an integer >= 1"):
        train([row])


def test_resuming_goes_on_bit_for_bit(train, tmp_path):
    options = {**STAGE_TWO, "save_strategy": "steps", "save_steps": 2}
    train(max_steps=4, output_dir=tmp_path / "whole", **options)
    train(max_steps=2, output_dir=tmp_path / "half", **options)
    train(
        max_steps=4,
        output_dir=tmp_path / "rest",
        resume_from_checkpoint=tmp_path / "half" / "checkpoint-2",
        **options,
    )
    for file in ("model.safetensors", "mask_tokenizer/model.safetensors"):
        whole, rest = (load_file(tmp_path / name / "checkpoint-4" / file) for name in ("whole", "rest"))
        for name, value in whole.items():
            assert torch.equal(value, rest[name]), name


def test_frozen_parts_stay(train, world, tmp_path):
    train(freeze_vit=True, freeze_aligner=True, max_steps=1, save_strategy="steps", save_steps=1, **STAGE_TWO)
    before, after = (load_file(p / "model.safetensors") for p in (world.lmm, tmp_path / "out" / "checkpoint-1"))
    moved = {name for name, value in before.items() if value.shape == after[name].shape}
    moved = {name for name in moved if not torch.equal(before[name], after[name])}
    assert moved and not any("vision_tower" in name or "multi_modal_projector" in name for name in moved)


def test_rates_of_vit_and_aligner_are_ms_swifts_own(train, world, tmp_path):
    options = {"vit_lr": 1e-12, "aligner_lr": 1e-12, "learning_rate": 1e-2, "detokenizer_lr": 1e-12}
    train(max_steps=1, save_strategy="steps", save_steps=1, **options, **STAGE_TWO)
    before, after = (load_file(p / "model.safetensors") for p in (world.lmm, tmp_path / "out" / "checkpoint-1"))
    change = {n: (v - after[n]).abs().max() for n, v in before.items() if v.shape == after[n].shape}
    assert max(v for n, v in change.items() if "vision_tower" in n or "multi_modal_projector" in n) < 1e-6
    assert max(v for n, v in change.items() if "language_model" in n) > 1e-3
