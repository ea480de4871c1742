"""The mask rewards in ms-swift: their inputs from rows, and GRPO runs."""

import numpy as np
import pytest
import torch
from runs import COMMON, LMM, flags, logged, mask_of, write_rows
from swift.rewards import orms

from himtok_plugin import MaskTokenizer
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import to_rle, to_square
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn
from himtok_plugin.swift_integration.training import reward_functions as module
from himtok_plugin.swift_integration.training.reward_functions import load_target_masks, register_rewards

MASK = mask_of(48, 64, 8, 40, 4, 20)
ANSWER = {"role": "assistant", "content": "The mask appears at <mask>."}
REWARDS = ["mask_iou", "mask_format", "mask_count", "no_target"]


@pytest.fixture(autouse=True)
def registered():
    register_rewards()


def packed(*masks):
    return MaskColumn([to_rle(mask) for mask in masks], None, 7).to_json()


def test_rewards_are_registered_under_the_names_of_the_flag():
    assert all(issubclass(orms[name], module.MaskReward) for name in REWARDS)


def test_masks_of_the_question_are_no_targets():
    other = ~MASK
    asked = [{"role": "user", "content": "<image>What is <mask>?"}, ANSWER]
    (found,) = load_target_masks(packed(MASK, other), asked)
    assert np.array_equal(found, other)
    assert len(load_target_masks(packed(MASK, other), asked[:1])) == 1
    assert load_target_masks(packed(), asked[1:]) == []
    without_masks = MaskColumn([], None, 7, {"asks_for_masks": False}).to_json()
    assert load_target_masks(packed(MASK), asked[:1]) is None and load_target_masks(without_masks, asked[1:]) is None


def test_error_of_an_unreadable_mask_names_its_row():
    column = MaskColumn(["nowhere.png"], None, 7).to_json()
    with pytest.raises(ValueError, match=r"row 7: masks\[0\]: mask 'nowhere.png' cannot be read"):
        load_target_masks(column, [ANSWER])


def test_rows_that_ask_for_no_mask_have_no_mask_reward_and_a_dataset_without_any_is_an_error():
    reward = orms["mask_count"](args=None)
    messages = [[{"role": "user", "content": "<image>Segment."}]] * 2
    assert reward(["Yes.", "No mask."], masks=[None, packed()], messages=messages) == [None, 1.0]
    without_masks = MaskColumn([], None, 7, {"asks_for_masks": False}).to_json()
    described = [[{"role": "user", "content": "<image>What is <mask>?"}]]
    masks = [without_masks, packed(MASK)]
    assert reward(["Yes.", "A dog."], masks=masks, messages=messages[:1] + described) == [None, None]
    assert reward(["Yes."], masks=[None], messages=messages) == [None]
    with pytest.raises(ValueError, match="masks: got a dataset without this column"):
        reward(["Yes."], messages=messages)


def grpo(world, tmp_path, **options):
    from swift.pipelines import rlhf_main

    defaults = {
        **COMMON,
        **LMM,
        "rlhf_type": "grpo",
        "output_dir": tmp_path / "out",
        "reward_funcs": REWARDS,
        "use_vllm": False,
        "num_generations": 4,
        "max_completion_length": 24,
        "temperature": 1.0,
        "beta": 0.0,
        "learning_rate": 1e-4,
        "max_steps": 2,
        "dataset": world.scenes,
    }
    return rlhf_main(flags(**{**defaults, **options}))


def test_grpo_runs_on_scenes_with_all_mask_rewards(stage_two, world, tmp_path):
    result = grpo(world, tmp_path, model=stage_two[1], save_strategy="steps", save_steps=2)
    for name in ("MaskIoU", "MaskFormat", "MaskCount", "NoTarget"):
        (first, *_) = logged(result, f"rewards/{name}/mean")
        assert 0 <= first <= 1
    assert logged(result, "rewards/MaskFormat/mean")[0] > 0  # constrained generation produces valid mask text only
    MaskTokenizer.from_pretrained(tmp_path / "out" / "checkpoint-2" / "mask_tokenizer")


def test_masks_of_questions_are_shown_to_the_model_and_not_rewarded(stage_two, world, tmp_path, monkeypatch):
    from swift.rlhf_trainers import GRPOTrainer

    question = "<image>Segment what is beside <mask>."
    row = world.row(question, ANSWER["content"], masks=[world.left, world.right])
    plain = {key: value for key, value in world.row("<image>What?", "A thing.").items() if key != "masks"}
    seen, scored = [], []
    prepare, rewards = GRPOTrainer._prepare_batch_inputs, orms["mask_iou"].rewards

    def spy(self, samples):
        encoded = prepare(self, samples)
        seen.extend(self.template.tokenizer.decode(ids) for s in samples for ids in [s.encoded["input_ids"]])
        return encoded

    monkeypatch.setattr(GRPOTrainer, "_prepare_batch_inputs", spy)
    monkeypatch.setattr(
        orms["mask_iou"], "rewards", lambda self, t, targets: scored.extend(targets) or rewards(self, t, targets)
    )
    grpo(
        world, tmp_path, model=stage_two[1], max_steps=2, dataset=write_rows(tmp_path / "rows.jsonl", [row, plain] * 4)
    )
    tokenizer = MaskTokenizer.from_pretrained(stage_two[1] / "mask_tokenizer")
    square = torch.from_numpy(to_square(world.left, tokenizer.config.image_size))[None]
    shown = codes_to_text(tokenizer.encode(square)[0].tolist())
    assert any(f"beside {shown}" in text for text in seen)
    assert scored and all(np.array_equal(target, world.right) for (target,) in scored)
