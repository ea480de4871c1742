"""The demo with the shipped checkpoint, and as short a training as possible."""

import json

import pytest
from PIL import Image

from himtok_plugin.demo.run import CommandFailed, Demo
from himtok_plugin.demo.training import DemoPlan, TrainingDemo


def test_the_shipped_checkpoint_segments_held_out_scenes(tmp_path):
    scores = Demo(tmp_path, lambda *progress: None).run(count=40)
    scores = scores["40 held-out scenes"]
    assert scores["cIoU"] > 0.8 and scores["N-acc"] > 0.9 and scores["T-acc"] > 0.95  # 0.847, 0.991, 0.999 of 1,000
    assert Image.open(tmp_path / "demo.png").width > 200
    assert {path.name for path in tmp_path.iterdir()} == set(Demo.WRITES)


@pytest.mark.slow
def test_the_training_demo_writes_checkpoints_scores_and_a_picture(tmp_path):
    plan = DemoPlan(
        train_scenes=60,
        held_out_scenes=8,
        train_masks=200,
        held_out_masks=20,
        steps=(20, 6, 4),
        stage_one=("--continuous_warmup_steps", "8"),
    )
    reported = []
    scores = TrainingDemo(tmp_path, plan, lambda *progress: reported.append(progress)).run()
    assert set(scores) == {"tokenizer", "stage 2", "stage 3", "minutes"}
    assert scores["stage 3"]["samples"] == 8
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    assert (tmp_path / "stage3" / "checkpoint-4" / "mask_tokenizer" / "config.json").is_file()
    assert Image.open(tmp_path / "demo.png").width > 200
    assert ("stage 1", 1, 1) in reported
    assert {path.name for path in tmp_path.iterdir()} <= set(TrainingDemo.WRITES)


def test_a_failed_command_names_its_log_file(tmp_path):
    demo = Demo(tmp_path, lambda *progress: None)
    with pytest.raises(CommandFailed, match=r"swift sft failed with status \d+, see .*broken.log"):
        demo.run_swift("broken", None, "sft", "--plugin", "himtok", "--model", str(tmp_path / "absent"))
