"""Mask metrics during training: in the log, in TensorBoard, for early stopping; and separate learning rates."""

import pytest
import torch
from runs import STAGE_TWO, logged, read_rows, write_rows
from transformers import AutoModelForImageTextToText

from himtok_plugin import MaskTokenizer
from himtok_plugin.masks import to_rle
from himtok_plugin.swift_integration.training.learning_rates import move_to_own_groups, scale_embedding_updates

GENERATE = {
    "predict_with_generate": True,
    "eval_strategy": "steps",
    "save_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "per_device_eval_batch_size": 8,
    "max_new_tokens": 24,
}


@pytest.fixture
def evaluated(train, stage_two, world, tmp_path):
    def run(**options):
        options = {**GENERATE, "val_dataset": world.scenes, **options}
        return train(model=stage_two[1], mask_tokenizer=None, learning_rate=1e-4, **options)

    return run


def test_generated_masks_are_scored_logged_and_kept(evaluated, world, tmp_path):
    from himtok_plugin.evaluation.scoring import score_results

    result = evaluated()
    for name in ("cIoU", "gIoU", "P@0.5", "T-acc", "samples"):
        assert len(logged(result, f"eval_{name}")) == 1
    assert logged(result, "eval_samples") == [len(read_rows(world.scenes))]
    predicted = tmp_path / "out" / "checkpoint-1" / "predict.jsonl"
    assert score_results(predicted)["cIoU"] == pytest.approx(logged(result, "eval_cIoU")[0], abs=1e-6)


def test_rows_of_two_validation_sets_all_count(evaluated, world, tmp_path):
    """Row numbers start at 1 in both."""
    rows = read_rows(world.scenes)
    files = [write_rows(tmp_path / f"val{i}.jsonl", rows[3 * i : 3 * i + 3]) for i in range(2)]
    assert logged(evaluated(val_dataset=files), "eval_samples") == [6]


def test_ignored_pixels_count_nowhere_and_rows_that_ask_for_no_mask_are_not_scored(world):
    from himtok_plugin.swift_integration.training.mask_metrics import MaskEvaluation

    whole = world.left | world.right
    row = {"images": [str(world.image)], "masks": [to_rle(whole)], "target_masks": [to_rle(world.left)]}
    evaluation = MaskEvaluation()
    evaluation.add({**row, "ignore": [to_rle(world.right)]}, ("a", 1))
    for number in (2, 3):
        evaluation.add({"images": [str(world.image)], "masks": []}, ("a", number))
    assert len(evaluation.pictures) == 1
    scores = evaluation.compute()
    assert (scores["cIoU"], scores["samples"], scores["not_scored"]) == (1.0, 1, 2) and "N-acc" not in scores


def test_best_checkpoint_is_chosen_by_ciou_and_training_stops_early(evaluated, monkeypatch):
    from himtok_plugin.swift_integration.training.mask_metrics import MaskEvaluation

    falling = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    compute = MaskEvaluation.compute
    monkeypatch.setattr(MaskEvaluation, "compute", lambda self: {**compute(self), "cIoU": next(falling)})
    result = evaluated(max_steps=5, early_stop_interval=2)
    assert logged(result, "eval_cIoU") == [0.5, 0.4, 0.3]
    assert result["best_metric"] == 0.5 and result["best_model_checkpoint"].endswith("checkpoint-1")


def test_tensorboard_shows_scores_and_masks(evaluated, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))  # ms-swift keeps the folder of its first run
    evaluated(report_to="tensorboard")
    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    assert "eval/cIoU" in events.Tags()["scalars"]
    assert events.Tags()["images"] == [f"eval/mask_{i}" for i in range(4)]
    picture = events.Images("eval/mask_0")[0]
    assert picture.height == 64 and picture.width > 3 * 64


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("empty", [True, False])
def test_mask_loss_without_masks_in_the_data_is_refused(train, world, empty, lazy):
    row = world.row("<image>What?", "A thing.")
    rows = [row if empty else {key: value for key, value in row.items() if key != "masks"}] * 4
    message = "mask_loss_weight=1.0, hierarchical_loss_weight=1.0: got rows without masks"
    with pytest.raises(ValueError, match=message):
        train(rows, lazy_tokenize=lazy, **STAGE_TWO)


def test_mask_in_the_last_row_is_enough(train, world):
    rows = [world.row("<image>What?", "A thing.")] * 150 + [world.segment(world.left)]
    for lazy in (True, False):
        assert logged(train(rows, lazy_tokenize=lazy, **STAGE_TWO), "loss")


@pytest.fixture
def warned(monkeypatch):
    """Collect the trainer's warnings."""
    from swift.utils import get_logger

    messages = []
    monkeypatch.setattr(get_logger(), "warning", lambda message, *_, **__: messages.append(str(message)))
    return messages


@pytest.mark.parametrize("kind", ["stream", "questions"])
def test_run_without_any_supervised_mask_warns_at_the_end(train, world, warned, kind):
    """Neither is known before: a stream cannot be searched, and the search counts masks of questions."""
    row = world.row("<image>What?", "A thing.")
    if kind == "questions":
        row = world.row("<image>What is <mask>?", "A thing.", masks=[world.left])
    train([row] * 4, streaming=kind == "stream", **STAGE_TWO)
    assert sum("got no answer with a mask in the whole run" in line for line in warned) == 1
    warned.clear()
    train([world.segment(world.left)] * 4, streaming=kind == "stream", **STAGE_TWO)
    assert not any("had a mask" in line for line in warned)


def test_detokenizer_that_no_loss_trains_is_refused(train, world):
    for options in ({"train_detokenizer": True}, {"detokenizer_lr": 1e-4}):
        with pytest.raises(ValueError, match="with a mask loss only"):
            train([world.segment(world.left)], **options)


def weights(folder):
    return AutoModelForImageTextToText.from_pretrained(folder).get_input_embeddings().weight


@pytest.mark.parametrize("tuner", ["full", "lora"])
def test_detokenizer_and_mask_token_embeddings_have_separate_rates(train, stage_two, tmp_path, tuner):
    """With tiny rates they stay the same while all other weights change."""
    result = train(
        model=stage_two[1],
        mask_tokenizer=None,
        tuner_type=tuner,
        target_modules="all-linear" if tuner == "lora" else None,
        learning_rate=1e-2,
        detokenizer_lr=1e-12,
        mask_rows_lr=1e-12,
        save_strategy="steps",
        save_steps=1,
        **STAGE_TWO,
    )
    assert logged(result, "loss")
    before, after = (MaskTokenizer.from_pretrained(f) for f in (stage_two[1], tmp_path / "out" / "checkpoint-1"))
    state = before.state_dict()
    assert all(torch.allclose(value, state[name], atol=1e-9) for name, value in after.state_dict().items())
    if tuner == "lora":
        from safetensors.torch import load_file

        saved = load_file(tmp_path / "out" / "checkpoint-1" / "adapter_model.safetensors")
        rows = next(value for name, value in saved.items() if "trainable_tokens_delta" in name)
        old = weights(stage_two[1])
        assert min((old - row).abs().amax(1).min() for row in rows) < 1e-9
        return
    from transformers import AutoProcessor

    from himtok_plugin.lmm.vocabulary import MaskVocabulary

    ids = MaskVocabulary.of(AutoProcessor.from_pretrained(stage_two[1]).tokenizer, 12).ids()
    moved = (weights(stage_two[1]) - weights(tmp_path / "out" / "checkpoint-1")).abs().amax(1)
    assert moved[ids].max() < 1e-9 < moved[: ids[0]].max()


def test_scaled_embeddings_change_as_with_another_rate():
    def trained(rate, scale):
        torch.manual_seed(0)
        matrix = torch.nn.Parameter(torch.randn(5, 3))
        optimizer = torch.optim.AdamW([matrix], lr=rate, weight_decay=0.1)
        if scale is not None:
            scale_embedding_updates(optimizer, [matrix, matrix], torch.tensor([1, 4]), scale)
        for _ in range(4):
            matrix.grad = torch.randn(5, 3)
            optimizer.step()
        return matrix.detach()

    scaled, slow, fast = trained(1e-2, 0.1), trained(1e-3, None), trained(1e-2, None)
    assert torch.allclose(scaled[[1, 4]], slow[[1, 4]], atol=1e-6)
    assert torch.equal(scaled[[0, 2, 3]], fast[[0, 2, 3]])


def test_new_groups_keep_the_weight_decay():
    decayed, plain = torch.nn.Parameter(torch.zeros(2, 2)), torch.nn.Parameter(torch.zeros(2))
    other = torch.nn.Parameter(torch.zeros(2, 2))
    groups = [{"params": [decayed, other], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    move_to_own_groups(optimizer, [decayed, plain], 0.5)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {id(decayed): (0.5, 0.1), id(plain): (0.5, 0.0), id(other): (1.0, 0.1)}
