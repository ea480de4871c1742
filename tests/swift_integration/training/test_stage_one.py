"""Stage 1: `swift sft` trains a new mask tokenizer on rows with masks only."""

import json

import pytest
import torch
from runs import logged, sft, write_rows
from tiny_models import tiny_model

from himtok_plugin import MaskTokenizer
from himtok_plugin.data.generated.scenes import write_mask_rows


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fresh")
    tiny_model(seed=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(fresh, tmp_path_factory):
    """Train 30 steps: (ms-swift's result, checkpoint)."""
    root = tmp_path_factory.mktemp("stage_one")
    result = sft(
        model=fresh,
        dataset=write_mask_rows(root / "train.jsonl", 64, seed=1),
        val_dataset=write_mask_rows(root / "val.jsonl", 16, seed=2),
        output_dir=root / "out",
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        max_steps=30,
        learning_rate=3e-3,
        continuous_warmup_steps=8,
        dead_code_steps=4,
        eval_strategy="steps",
        eval_steps=30,
        save_strategy="steps",
        save_steps=30,
    )
    return result, root / "out" / "checkpoint-30"


def test_loss_falls(run):
    losses = logged(run[0], "loss_reconstruction")
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_codebook_is_initialized_after_the_warm_up(run):
    result, checkpoint = run
    assert len(logged(result, "loss_commitment")) == 30 - 8
    assert MaskTokenizer.from_pretrained(checkpoint).config.codebook_ready


def test_codebook_usage_is_logged(run):
    result, _ = run
    for key in ("used_codes", "eval_used_codes"):
        assert logged(result, key) and all(1 <= count <= 12 for count in logged(result, key))
    assert all(1 <= value <= 12 for value in logged(result, "perplexity") + logged(result, "eval_perplexity"))
    assert logged(result, "used_codes")[-1] >= 6


def test_evaluation_logs_iou_per_token_count_and_boundary_f(run):
    for key in ("iou_1", "iou_2", "iou_4", "boundary_F"):
        (value,) = logged(run[0], f"eval_{key}")
        assert 0 <= value <= 1
    assert not any("iou_8" in entry for entry in run[0]["log_history"])


def test_checkpoint_is_a_mask_tokenizer(run, fresh):
    _, checkpoint = run
    trained, before = MaskTokenizer.from_pretrained(checkpoint), MaskTokenizer.from_pretrained(fresh)
    codes = trained.encode(torch.rand(2, 16, 16))
    assert codes.shape == (2, 4)
    for name, value in before.state_dict().items():
        assert value.shape == trained.state_dict()[name].shape
    assert not torch.equal(before.decoder.positional_embedding, trained.decoder.positional_embedding)


def test_options_are_saved_with_the_checkpoint(run):
    saved = json.loads((run[1] / "args.json").read_text())
    assert saved["continuous_warmup_steps"] == 8 and saved["plugin"] == ["himtok"]


@pytest.mark.parametrize("batch, accumulation", [(2, 8), (1, 16)])
def test_accumulated_batches_have_the_gradient_of_one_batch(world, tmp_path, batch, accumulation):
    """Without prefixes, whose length is drawn per batch, and with one mask size, because Dice sums over a batch."""
    row = json.loads(world.mask_rows.read_text().splitlines()[0])
    rows = write_rows(tmp_path / "masks.jsonl", [row] * 16)
    options = {"model": world.mask_tokenizer, "dataset": rows, "max_steps": 1, "prefix_loss_weight": 0}
    options |= {"dead_code_steps": 0, "max_grad_norm": 1e9}
    one = sft(output_dir=tmp_path / "one", per_device_train_batch_size=16, **options)
    many = sft(
        output_dir=tmp_path / "many",
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **options,
    )
    assert logged(many, "grad_norm")[0] == pytest.approx(logged(one, "grad_norm")[0], rel=1e-3)
    assert logged(many, "loss")[0] == pytest.approx(logged(one, "loss")[0], rel=1e-3)


def test_several_masks_in_a_row_are_several_samples(world, tmp_path):
    masks = [json.loads(line)["masks"][0] for line in world.mask_rows.read_text().splitlines()[:6]]
    apart = write_rows(tmp_path / "apart.jsonl", [{"masks": [mask]} for mask in masks])
    together = write_rows(tmp_path / "together.jsonl", [{"masks": masks[:4]}, {"masks": masks[4:]}])
    options = {"model": world.mask_tokenizer, "max_steps": 1, "prefix_loss_weight": 0}
    losses = [
        logged(sft(dataset=rows, per_device_train_batch_size=size, output_dir=tmp_path / str(size), **options), "loss")
        for rows, size in ((apart, 6), (together, 2))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_training_from_a_checkpoint_does_not_initialize_its_codebook_again(run, world, tmp_path):
    options = {"continuous_warmup_steps": 8, "max_steps": 1, "output_dir": tmp_path}
    result = sft(model=run[1], dataset=world.mask_rows, **options)
    assert logged(result, "loss_commitment")


def test_batches_whose_gradients_are_accumulated_are_one_step_for_the_objective(fresh, tmp_path, monkeypatch):
    """`dead_code_steps` and the warm-up count optimizer steps."""
    from himtok_plugin.mask_tokenizer.objective import StageOneObjective

    steps, compute = [], StageOneObjective.__call__

    def observed(self, squares, step):
        steps.append(step)
        return compute(self, squares, step)

    monkeypatch.setattr(StageOneObjective, "__call__", observed)
    rows = write_mask_rows(tmp_path / "rows.jsonl", 32, seed=1)
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 3}
    sft(model=fresh, dataset=rows, output_dir=tmp_path / "out", **options)
    assert steps == [step for step in range(3) for _ in range(4)]
