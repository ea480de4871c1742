"""The examples run without changes; those that train are marked slow. 08 is tested in internvl_chat/."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import EXAMPLES
from PIL import Image


def run(name, *arguments, cwd):
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_round_trip_prints_text_and_draws_prefixes(tmp_path):
    printed = run("01_round_trip.py", cwd=tmp_path)
    assert printed.startswith("<|mt_start|><|mt_")
    assert " 8 tokens: IoU" in printed
    assert Image.open(tmp_path / "round_trip.png").width > 200


@pytest.mark.slow
def test_an_lmm_is_trained_on_photographs_and_scored(tmp_path):
    printed = run("02_learn_photographs.py", "--output", tmp_path, "--steps", 6, 4, cwd=tmp_path)
    assert "ceiling of the stage 2 tokenizer" in printed and "gIoU" in printed


@pytest.mark.slow
def test_a_mask_tokenizer_is_trained_and_measured(tmp_path):
    printed = run("03_reconstruct_masks.py", "--output", tmp_path, "--steps", 6, cwd=tmp_path)
    assert " 8 tokens: mean IoU" in printed


def test_training_data_of_the_shipped_checkpoint_is_generated(tmp_path):
    options = ("--output", tmp_path, "--only", "masks", "scenes", "--scale", 0.0005, "--processes", 0)
    run("07_train_shipped_checkpoint.py", *options, cwd=tmp_path)
    masks, words, requests = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()] for name in ("masks", "words", "requests")
    )
    assert {len(row["masks"]) for row in masks[:-1]} == {8}
    assert not any(row["masks"] for row in words)
    for row in requests:
        answers = [turn["content"] for turn in row["messages"] if turn["role"] == "assistant"]
        assert sum(answer.count("<mask>") for answer in answers) == len(row["masks"])
        assert Path(row["images"][0]).is_file()
    assert len(requests) == 60 and (tmp_path / "lmm" / "config.json").is_file()


@pytest.mark.slow
def test_the_shipped_checkpoint_is_trained_and_packed(tmp_path):
    parts = ("masks", "stage1", "scenes", "words", "stage2", "stage3", "pack")
    short = ("--eval_strategy", "no", "--per_device_train_batch_size", 4, "--dataset_num_proc", 1)
    options = ("--output", tmp_path, "--scale", 0.003, "--processes", 0, "--only", *parts)
    run("07_train_shipped_checkpoint.py", *options, "--sft", *short, cwd=tmp_path)
    assert (tmp_path / "packed" / "mask_tokenizer" / "model.safetensors").is_file()
