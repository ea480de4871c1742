"""Another base is another `--model` and nothing else."""

import importlib.util

import numpy as np
import pytest
from runs import LMM, STAGE_TWO, infer, logged, read_rows, sft, write_rows
from tiny_bases import build_tiny_llava, build_tiny_qwen
from transformers import AutoModelForImageTextToText

from himtok_plugin.mask_text import MASK_START
from himtok_plugin.masks import load_mask

needs_qwen = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("qwen_vl_utils", "decord")),
    reason="ms-swift asks for qwen_vl_utils and decord",
)


# By the folder's name ms-swift tells models apart that share an architecture.
BASES = [
    ("llava-1.5-7b-hf", build_tiny_llava),
    pytest.param("Qwen2.5-VL-3B-Instruct", build_tiny_qwen, marks=needs_qwen),
]


@pytest.mark.parametrize(("name", "build"), BASES)
def test_stage_two_and_inference(name, build, world, tmp_path, monkeypatch):
    rows = [world.segment(world.left), world.row("<image>All.", "<mask> <mask>", masks=[world.left, world.right])]
    base = build(tmp_path / name)
    options = {"mask_tokenizer": world.mask_tokenizer, "dataset": write_rows(tmp_path / "rows.jsonl", rows)}
    saving = {"save_strategy": "steps", "save_steps": 3}
    result = sft(model=base, max_steps=3, output_dir=tmp_path / "out", **options, **saving, **LMM, **STAGE_TWO)
    losses = logged(result, "loss")
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert len(logged(result, "loss_mask_hierarchical")) == 3
    checkpoint = tmp_path / "out" / "checkpoint-3"
    _, report = AutoModelForImageTextToText.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report.values()), report

    # Untrained models open no mask by themselves.
    asked = [world.row(f"<image>Is it {MASK_START}", "It is <mask>.", masks=[world.left])]
    opening = write_rows(tmp_path / "asked.jsonl", asked)
    (plain,) = infer(opening, tmp_path / "plain.jsonl", model=checkpoint, max_new_tokens=8)
    assert isinstance(plain["masks"], list)
    (row,) = infer(opening, tmp_path / "opened.jsonl", model=checkpoint, max_new_tokens=8, response_prefix=MASK_START)
    assert row["masks"][0]["size"] == [48, 64]
    assert np.array_equal(load_mask(row["target_masks"][0]), world.left)
    assert read_rows(tmp_path / "opened.jsonl") == [row]
