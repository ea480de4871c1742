"""The examples run without changes; those that train are marked slow. 08 is tested in internvl_chat/."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from paths import EXAMPLES
from PIL import Image

from himtok_plugin.data.generated.object_masks import generate_object_masks
from himtok_plugin.masks import to_rle


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


def write_object_masks(folder):
    """A file of COCO annotations with polygons, and JSON lines with RLE."""
    square = [[10, 10, 60, 10, 60, 60, 10, 60]]
    images = [{"id": i, "height": 80, "width": 100} for i in range(30)]
    annotations = [{"image_id": i, "category_id": 1, "segmentation": square} for i in range(30)]
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    masks = generate_object_masks(30, seed=3)
    lines = [{"source": "blob", "image": str(i), "segmentation": to_rle(mask)} for i, mask in enumerate(masks)]
    (folder / "blobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "instances.json", folder / "blobs.jsonl"


def test_training_masks_of_the_default_mask_tokenizer_hold_images_out(tmp_path):
    options = ("--output", tmp_path, "--only", "masks", "--scale", 0.0005, "--processes", 0)
    printed = run("10_train_mask_tokenizer.py", *write_object_masks(tmp_path), *options, cwd=tmp_path)
    held_out = {
        name: sum(len(json.loads(line)["masks"]) for line in (tmp_path / f"held_out_{name}.jsonl").open())
        for name in ("instances", "blob", "scenes")
    }
    assert all(held_out.values()) and held_out["scenes"] == 8
    assert f"{60 - held_out['instances'] - held_out['blob']} real masks to train on" in printed
    rows = [json.loads(line) for line in (tmp_path / "masks.jsonl").open()]
    assert sum(len(row["masks"]) for row in rows) == 48


@pytest.mark.slow
def test_the_default_mask_tokenizer_is_trained_packed_and_measured(tmp_path):
    options = ("--output", tmp_path, "--scale", 0.002, "--processes", 0)
    short = ("--max_steps", 3, "--continuous_warmup_steps", 1, "--eval_strategy", "no", "--dataset_num_proc", 1)
    printed = run("10_train_mask_tokenizer.py", *write_object_masks(tmp_path), *options, "--sft", *short, cwd=tmp_path)
    assert "held_out_blob, 8 candidates" in printed
    assert (tmp_path / "packed" / "model.safetensors").stat().st_size < 25e6


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
