"""Stages 2 and 3: trained parameters, logged values, and the contents of checkpoints."""

import json
import subprocess
import sys

import pytest
import torch
from runs import LMM, STAGE_TWO, logged, pretrain, sft, untie, write_rows
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from himtok_plugin import MaskTokenizer
from himtok_plugin.lmm.vocabulary import MaskVocabulary

TERMS = ("loss_next_token", "loss_mask_bce", "loss_mask_dice", "loss_mask_hierarchical")
SAVED = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def train(world, tmp_path):
    """Run `swift sft` on the tiny LMM; `options` take precedence."""

    def run(rows=None, **options):
        if isinstance(rows, list):
            rows = write_rows(tmp_path / "rows.jsonl", rows)
        defaults = {
            "model": world.lmm,
            "mask_tokenizer": world.mask_tokenizer,
            "dataset": rows or world.scenes,
            "output_dir": tmp_path / "out",
            **LMM,
        }
        return sft(**{**defaults, **options})

    return run


def same_parts(one: MaskTokenizer, other: MaskTokenizer) -> dict[str, bool]:
    """Return for each part of a mask tokenizer whether both have equal weights."""
    names = {name.split(".")[0] for name in one.state_dict()}
    state = other.state_dict()
    return {
        name: all(torch.equal(v, state[k]) for k, v in one.state_dict().items() if k.split(".")[0] == name)
        for name in names
    }


def test_all_four_losses_are_logged_and_fall(stage_two):
    result, _ = stage_two
    for term in TERMS:
        values = logged(result, term)
        assert len(values) == 120  # one per step
        assert values[-1] < values[0]


def test_total_loss_is_the_weighted_sum_of_the_terms(train):
    weights = {"mask_loss_weight": 0.5, "hierarchical_loss_weight": 2.0, "mask_dice_weight": 0.75}
    result = train(max_steps=3, **weights)
    terms = [logged(result, term) for term in TERMS]
    for loss, token, bce, dice, coarse in zip(logged(result, "loss"), *terms, strict=True):
        assert loss == pytest.approx(token + 0.5 * (bce + 0.75 * dice) + 2 * coarse, rel=1e-3)


def test_evaluation_logs_the_terms_as_well(train, world):
    options = {"val_dataset": world.scenes, "eval_strategy": "steps", "eval_steps": 2, **STAGE_TWO}
    result = train(max_steps=2, per_device_eval_batch_size=8, **options)
    for term in TERMS:
        assert len(logged(result, f"eval_{term}")) == 1


def test_detokenizer_learns_while_encoder_and_codebook_stay(stage_two, world):
    trained = MaskTokenizer.from_pretrained(stage_two[1] / "mask_tokenizer")
    same = same_parts(MaskTokenizer.from_pretrained(world.mask_tokenizer), trained)
    expected = {"encoder": True, "latent_tokens": True, "quantize": True, "decoder": False, "pixel_decoder": False}
    assert same == expected


def test_detokenizer_can_be_frozen(train, world, tmp_path):
    train(train_detokenizer=False, **STAGE_TWO, **SAVED)
    trained = MaskTokenizer.from_pretrained(tmp_path / "out" / "checkpoint-2")
    assert all(same_parts(MaskTokenizer.from_pretrained(world.mask_tokenizer), trained).values())


def test_stage_three_logs_the_next_token_only_and_leaves_the_mask_tokenizer_alone(train, stage_two, tmp_path):
    _, checkpoint = stage_two
    result = train(model=checkpoint, mask_tokenizer=None, **SAVED)
    assert logged(result, "loss") == pytest.approx(logged(result, "loss_next_token"), rel=1e-4)
    assert not any("loss_mask" in key for entry in result["log_history"] for key in entry)
    saved, before = (MaskTokenizer.from_pretrained(folder) for folder in (tmp_path / "out/checkpoint-2", checkpoint))
    assert all(same_parts(before, saved).values())


def test_checkpoint_has_a_plain_lmm(stage_two):
    _, checkpoint = stage_two
    _, report = AutoModelForImageTextToText.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report.values()), report
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            assert not [name for name in weights.keys() if "mask_tokenizer" in name]
    assert "mask_tokenizer" not in (checkpoint / "config.json").read_text()
    MaskVocabulary.of(AutoProcessor.from_pretrained(checkpoint).tokenizer, 12)


def test_checkpoint_loads_where_neither_this_package_nor_swift_can_be_imported(stage_two):
    code = (
        "import sys; sys.modules['himtok_plugin'] = sys.modules['swift'] = None\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(stage_two[1])!r})\n"
        f"tokenizer = AutoProcessor.from_pretrained({str(stage_two[1])!r}).tokenizer\n"
        "assert len(tokenizer) <= model.get_input_embeddings().weight.shape[0]\n"
        "print(tokenizer.convert_tokens_to_ids('<|mt_11|>') - tokenizer.convert_tokens_to_ids('<|mt_0|>'))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert child.stdout.strip() == "11", child.stderr[-2000:]


def test_checkpoint_records_the_options_and_no_path_of_the_plugin(stage_two):
    saved = json.loads((stage_two[1] / "args.json").read_text())
    assert saved["plugin"] == ["himtok"] and saved["mask_loss_weight"] == 1
    assert not saved["external_plugins"]


def test_second_run_on_a_checkpoint_adds_no_tokens(train, stage_two, tmp_path):
    train(model=stage_two[1], mask_tokenizer=None, max_steps=1, save_strategy="steps", save_steps=1)
    sizes = [
        AutoModelForImageTextToText.from_pretrained(folder).get_input_embeddings().weight.shape
        for folder in (stage_two[1], tmp_path / "out" / "checkpoint-1")
    ]
    assert sizes[0] == sizes[1]


def test_accumulated_batches_have_the_gradient_of_one_batch(train, world, tmp_path):
    """All rows are the same, and there are no coarse levels, which are drawn per batch."""
    rows = [world.segment(world.left)] * 8
    options = {"mask_loss_weight": 1, "max_steps": 1, "max_grad_norm": 1e9}
    one = train(rows, per_device_train_batch_size=8, output_dir=tmp_path / "one", **options)
    many = train(
        rows, per_device_train_batch_size=2, gradient_accumulation_steps=4, output_dir=tmp_path / "many", **options
    )
    for key in ("loss", "grad_norm", *TERMS[:3]):
        assert logged(many, key)[0] == pytest.approx(logged(one, key)[0], rel=1e-3), key


def test_masks_have_the_same_weight_in_unequal_accumulated_batches(train, world, tmp_path):
    """The loss is the mean over a step's masks, not over batches, one of which has a single mask here."""
    rows = [
        world.row("<image>Both.", "<mask> <mask>", masks=[world.left, world.right]),
        world.row("<image>One.", "Here: <mask>", masks=[world.left]),
    ]
    options = {"mask_loss_weight": 1, "mask_dice_weight": 0, "max_steps": 1, "max_grad_norm": 1e9}
    one = train(rows, per_device_train_batch_size=2, output_dir=tmp_path / "one", **options)
    two = train(
        rows, per_device_train_batch_size=1, gradient_accumulation_steps=2, output_dir=tmp_path / "two", **options
    )
    for key in ("loss", "grad_norm"):
        assert logged(two, key)[0] == pytest.approx(logged(one, key)[0], rel=1e-3), key


def test_resuming_restores_the_mask_tokenizer(train, stage_two, tmp_path, monkeypatch):
    train(max_steps=2, learning_rate=1e-2, **STAGE_TWO, **SAVED)
    checkpoint = tmp_path / "out" / "checkpoint-2"
    from himtok_plugin.swift_integration.training.trainer import MaskTrainer

    resumed = []
    load = MaskTrainer._load_from_checkpoint

    def loaded(self, *args, **kwargs):
        load(self, *args, **kwargs)
        resumed.append({name: value.clone() for name, value in self.mask_tokenizer.state_dict().items()})

    monkeypatch.setattr(MaskTrainer, "_load_from_checkpoint", loaded)
    result = train(max_steps=3, resume_from_checkpoint=checkpoint, output_dir=tmp_path / "again", **STAGE_TWO)
    saved = MaskTokenizer.from_pretrained(checkpoint / "mask_tokenizer").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in resumed[0].items())
    assert result["log_history"][-1]["step"] == 3


def test_resuming_without_a_mask_tokenizer_is_refused(train, tmp_path):
    import shutil

    train(max_steps=2, **SAVED)
    checkpoint = tmp_path / "out" / "checkpoint-2"
    shutil.rmtree(checkpoint / "mask_tokenizer")
    with pytest.raises(ValueError, match="got no folder mask_tokenizer/"):
        train(max_steps=3, resume_from_checkpoint=checkpoint)


def test_untied_lmm_trains_and_saves_both_matrices(train, world, tmp_path):
    untied = untie(world.lmm, tmp_path / "untied")
    result = train(model=untied, **STAGE_TWO, **SAVED)
    assert all(len(logged(result, term)) == 2 for term in TERMS)
    saved, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out" / "checkpoint-2", output_loading_info=True
    )
    assert not any(report.values()), report
    inputs, outputs = saved.get_input_embeddings().weight, saved.get_output_embeddings().weight
    assert inputs.shape == outputs.shape and not torch.equal(inputs, outputs)


def test_pretraining_command_trains_masks_too(world, tmp_path):
    options = {"model": world.lmm, "mask_tokenizer": world.mask_tokenizer, "dataset": world.scenes}
    result = pretrain(**options, output_dir=tmp_path, **LMM, **STAGE_TWO)
    assert all(len(logged(result, term)) == 2 for term in TERMS)


@pytest.mark.parametrize(
    "options",
    [
        {"lazy_tokenize": False},
        {"lazy_tokenize": True},
        {"streaming": True},
        {"dataloader_num_workers": 2, "dataloader_multiprocessing_context": "fork"},
        {"torch_dtype": "bfloat16", "bf16": True, "use_cpu": True},
        {"use_logits_to_keep": True},
    ],
    ids=lambda options: ",".join(f"{name}={value}" for name, value in options.items()),
)
def test_other_data_loading_options_train(train, options):
    result = train(**{**STAGE_TWO, **options})
    for term in TERMS:
        values = logged(result, term)
        assert len(values) == 2 and all(0 <= value < 20 for value in values)


@pytest.mark.slow
def test_spawned_data_loader_workers_train(train):
    result = train(dataloader_num_workers=2, dataloader_multiprocessing_context="spawn", **STAGE_TWO)
    assert all(len(logged(result, term)) == 2 for term in TERMS)
