"""Runs whose model is sharded: questions are encoded, and checkpoints have a complete mask tokenizer."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from runs import FULL_TRAINING_ON_CPUS, flags, infer, run_swift, write_rows

from himtok_plugin import MaskTokenizer
from himtok_plugin.mask_text import MASK_START

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is an extra")

ON_CPUS = Path(__file__).parents[1] / "deepspeed_on_cpus.py"
COMMON = {
    **FULL_TRAINING_ON_CPUS,
    "torch_dtype": "bfloat16",
    "bf16": True,
    "ddp_backend": "gloo",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "save_strategy": "steps",
    "save_steps": 2,
    "max_steps": 2,
}
REWARDS = {"reward_funcs": ["mask_iou", "mask_format"], "use_vllm": False, "num_generations": 4, "beta": 0.0}
STAGE_TWO = {"mask_loss_weight": 1, "hierarchical_loss_weight": 1, "learning_rate": 1e-3}


@pytest.fixture
def zero3(tmp_path):
    """Write a configuration of ZeRO-3 that shards even the smallest parameters, and return its options."""

    def write(gathers_on_save):
        zero = {
            "stage": 3,
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_gather_16bit_weights_on_model_save": gathers_on_save,
        }
        auto = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
        config = {"zero_optimization": zero, "bf16": {"enabled": "auto"}, **dict.fromkeys(auto, "auto")}
        path = tmp_path / f"zero3_{gathers_on_save}.json"
        path.write_text(json.dumps(config))
        return {"deepspeed": path, "external_plugins": ON_CPUS}

    return write


@pytest.fixture
def launch(world, tmp_path):
    """Return a function that runs a `swift` command in two processes and returns its output folder."""

    def run(verb, rows, name="out", **options):
        names = {"model": world.lmm, "mask_tokenizer": world.mask_tokenizer, "output_dir": tmp_path / name}
        dataset = write_rows(tmp_path / "rows.jsonl", rows)
        argv = flags(**{**COMMON, **names, "dataset": dataset, **options})
        done = run_swift(verb, *argv, cwd=tmp_path, timeout=300, NPROC_PER_NODE="2")
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return tmp_path / name

    return run


def preference_rows(world, kind):
    """Rows with a mask in the question, and with different numbers of masks in their answers."""
    rows = [
        world.row("<image>What is beside <mask>?", "Here <mask>.", masks=[world.left, world.right]),
        world.row("<image>And beside <mask>?", "Nothing.", masks=[world.right]),
    ]
    if kind == "dpo":
        rows = [{**row, "rejected_response": "No."} for row in rows]
    # The label of KTO is the same in all rows of some batches.
    return [{**row, **({"label": i < 3} if kind == "kto" else {})} for i in range(4) for row in rows]


def list_losses(folder):
    logged = [json.loads(line) for line in (folder / "logging.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in logged if "loss" in entry]


def assert_unchanged(checkpoint, world):
    """Check that the mask tokenizer is exactly the one that the run began with."""
    before = MaskTokenizer.from_pretrained(world.mask_tokenizer).state_dict()
    after = MaskTokenizer.from_pretrained(checkpoint / "mask_tokenizer").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize(
    ("kind", "sharding"),
    [
        ("kto", "zero3"),
        *(
            pytest.param(kind, sharding, marks=pytest.mark.slow)
            for kind, sharding in (("dpo", "zero3"), ("grpo", "zero3"), ("dpo", "fsdp2"), ("kto", "fsdp2"))
        ),
    ],
)
def test_masks_of_questions_are_encoded_in_a_sharded_run(kind, sharding, launch, zero3, world):
    shards = {"fsdp": "fsdp2"} if sharding == "fsdp2" else zero3(gathers_on_save=True)
    options = {**REWARDS, "max_completion_length": 16, "min_masks": 1} if kind == "grpo" else {}
    folder = launch("rlhf", preference_rows(world, kind), rlhf_type=kind, **shards, **options)
    assert len(list_losses(folder)) == 2
    assert_unchanged(folder / "checkpoint-2", world)


def test_detokenizer_is_complete_in_checkpoints_for_which_zero3_does_not_gather_the_weights(launch, zero3, world):
    rows = [world.segment(world.left), world.segment(world.right)] * 4
    checkpoint = launch("sft", rows, **zero3(gathers_on_save=False), **STAGE_TWO) / "checkpoint-2"
    assert not list(checkpoint.glob("*.safetensors"))  # the LMM has DeepSpeed's shards only, as asked for
    before = MaskTokenizer.from_pretrained(world.mask_tokenizer).state_dict()
    after = MaskTokenizer.from_pretrained(checkpoint / "mask_tokenizer").state_dict()
    assert {name: value.shape for name, value in after.items()} == {n: value.shape for n, value in before.items()}
    moved = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"decoder", "pixel_decoder"}


@pytest.mark.slow
def test_run_resumes_from_deepspeeds_shards_alone_and_they_can_be_joined(launch, zero3, world, tmp_path):
    rows = [world.segment(world.left), world.segment(world.right)] * 4
    options = {**zero3(gathers_on_save=False), **STAGE_TWO, "max_steps": 4}
    first = launch("sft", rows, "first", **options)
    rest = launch("sft", rows, "rest", resume_from_checkpoint=first / "checkpoint-2", **options)
    assert list_losses(rest)[-2:] == pytest.approx(list_losses(first)[-2:], rel=1e-4)

    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    checkpoint = rest / "checkpoint-4"
    convert_zero_checkpoint_to_fp32_state_dict(str(checkpoint), str(checkpoint))
    asked = write_rows(tmp_path / "asked.jsonl", [world.segment(world.left)])
    answer = {"response_prefix": MASK_START, "max_new_tokens": 8}
    (row,) = infer(asked, tmp_path / "answers.jsonl", model=checkpoint, **answer)
    assert row["masks"]


@pytest.mark.slow
def test_answers_are_scored_in_a_run_with_zero3_though_only_some_have_masks(launch, zero3, world):
    """Every process decodes its own answers; none waits for one that has no mask to decode."""
    plain = {key: value for key, value in world.row("<image>What is it?", "No shape.").items() if key != "masks"}
    rows = [world.segment(world.left), plain] * 4
    evaluation = {"val_dataset": write_rows(world.root / "held_out.jsonl", rows), "eval_strategy": "steps"}
    generation = {"predict_with_generate": True, "max_new_tokens": 16, "eval_steps": 2}
    for name, more in {"one": {"ds3_gather_for_generation": False}, "two": STAGE_TWO}.items():
        folder = launch("sft", rows, name, **zero3(True), **evaluation, **generation, **more)
        scores = [json.loads(line) for line in (folder / "logging.jsonl").read_text().splitlines()]
        assert any("eval_samples" in entry for entry in scores)
