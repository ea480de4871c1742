"""Several processes train, save, resume and infer with DDP, DeepSpeed and FSDP; a split step has the same gradient."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import FULL_TRAINING_ON_CPUS, flags, infer, run_swift, write_rows
from safetensors.torch import load_file

from himtok_plugin import MaskTokenizer
from himtok_plugin.mask_text import MASK_START
from himtok_plugin.words.known_words import KnownWords

COMMON = {
    **FULL_TRAINING_ON_CPUS,
    "mask_loss_weight": 1,
    "hierarchical_loss_weight": 1,
    "mask_gradient_ratio": 0.3,
}
FLOAT32 = {"torch_dtype": "float32", "fp16": False, "bf16": False}
BFLOAT16 = {"torch_dtype": "bfloat16", "bf16": True}
DEEPSPEED_ON_CPUS = Path(__file__).parents[1] / "deepspeed_on_cpus.py"
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is an extra")


@pytest.fixture(scope="module")
def rows(world):
    """Write rows with two masks in an answer, with one, with none, and with one in a question."""
    without = {k: v for k, v in world.row("<image>What is it?", "No shape.").items() if k != "masks"}
    kinds = [
        world.row("<image>Both.", "<mask> and <mask>", masks=[world.left, world.right]),
        world.segment(world.left),
        without,
        world.row("<image>What is <mask>?", "A thing, here: <mask>", masks=[world.left, world.right]),
    ]
    return write_rows(world.root / "uneven.jsonl", [*kinds, without, without, kinds[1], without])


@pytest.fixture(scope="module")
def lmm(world):
    """An LMM whose whole training is known."""
    folder = world.root / "lmm_with_known_words"
    shutil.copytree(world.lmm, folder)
    KnownWords(frozenset({"earlier"})).save(folder)
    return folder


@pytest.fixture
def launch(world, lmm, rows, tmp_path):
    """Return a function that trains in several processes or in this one; DeepSpeed and FSDP always need a launcher."""
    from swift.pipelines import sft_main

    def run(processes, name="out", **options):
        defaults = {"model": lmm, "mask_tokenizer": world.mask_tokenizer, "dataset": rows}
        options = {**COMMON, **defaults, "output_dir": tmp_path / name, **options}
        if processes == 1 and not {"deepspeed", "fsdp", "ddp_backend"} & options.keys():
            sft_main(flags(**options))
            return tmp_path / name
        argv = flags(**{"ddp_backend": "gloo", **options})
        done = run_swift("sft", *argv, cwd=tmp_path, timeout=300, NPROC_PER_NODE=str(processes))
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return tmp_path / name

    return run


def weights_after_one_step(folder):
    lmm = load_file(folder / "checkpoint-1" / "model.safetensors")
    detokenizer = load_file(folder / "checkpoint-1" / "mask_tokenizer" / "model.safetensors")
    return {**lmm, **{f"mask_tokenizer.{name}": value for name, value in detokenizer.items()}}


def test_gradient_is_the_same_with_one_batch_four_accumulated_ones_and_two_processes(launch):
    """With SGD, the difference between weights is the gradient."""
    options = {
        **FLOAT32,
        "optim": "sgd",
        "learning_rate": 1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
        "weight_decay": 0,
        "max_steps": 1,
        "save_steps": 1,
        "train_dataloader_shuffle": False,
        "dataset_shuffle": False,
    }
    whole = launch(1, "whole", per_device_train_batch_size=8, **options)
    parts = launch(1, "parts", per_device_train_batch_size=2, gradient_accumulation_steps=4, **options)
    two = launch(2, "two", per_device_train_batch_size=4, **options)
    shards = launch(2, "shards", per_device_train_batch_size=4, fsdp="fsdp2", **options)
    expected = weights_after_one_step(whole)
    for folder in (parts, two, shards):
        for name, value in weights_after_one_step(folder).items():
            assert torch.allclose(value, expected[name], atol=2e-5, rtol=1e-4), (folder.name, name)


def check_checkpoint(checkpoint, world, tmp_path, trained=True):
    """Check that the mask tokenizer is complete and encodes as before, that words are listed and answers have masks."""
    assert KnownWords.load(checkpoint).words == {"earlier", "both", "segment", "it", "what", "is"}
    before = MaskTokenizer.from_pretrained(world.mask_tokenizer).state_dict()
    after = MaskTokenizer.from_pretrained(checkpoint / "mask_tokenizer").state_dict()
    assert before.keys() == after.keys()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert all(name.startswith(("decoder", "pixel_decoder")) for name in moved)
    assert bool(moved) == trained
    asked, answers = tmp_path / "asked.jsonl", tmp_path / f"{checkpoint.parent.name}_answers.jsonl"
    write_rows(asked, [world.segment(world.left)])
    model = {"adapters": checkpoint} if (checkpoint / "adapter_config.json").is_file() else {"model": checkpoint}
    (row,) = infer(asked, answers, **model, response_prefix=MASK_START, max_new_tokens=8)
    assert row["masks"]


def losses(folder):
    logged = [json.loads(line) for line in (folder / "logging.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in logged if "loss" in entry]


CASES = {
    "ddp": (2, FLOAT32),
    "ddp lora": (2, {**FLOAT32, "tuner_type": "lora", "target_modules": "all-linear"}),
    "zero2": (2, {**BFLOAT16, "deepspeed": "zero2"}),
    "zero2 lora": (2, {**BFLOAT16, "deepspeed": "zero2", "tuner_type": "lora", "target_modules": "all-linear"}),
    "zero3": (2, {**BFLOAT16, "deepspeed": "zero3", "external_plugins": DEEPSPEED_ON_CPUS}),
    "fsdp2 in one process": (1, {**FLOAT32, "fsdp": "fsdp2"}),
    "fsdp2": (2, {**FLOAT32, "fsdp": "fsdp2"}),
    "fsdp2 in half precision": (2, {**BFLOAT16, "fsdp": "fsdp2"}),
}


# Each needs two launches. Without the slow ones, DDP and both kinds of sharded weights are tested.
SLOW = {"ddp lora", "zero2", "zero2 lora", "fsdp2 in one process", "fsdp2 in half precision"}


def marks_of(case):
    return [*([needs_deepspeed] if "zero" in case else []), *([pytest.mark.slow] if case in SLOW else [])]


@pytest.mark.parametrize("case", [pytest.param(name, marks=marks_of(name)) for name in CASES])
def test_trains_saves_resumes_and_infers(case, launch, world, tmp_path):
    """With one row per process and step, a process without masks is in most steps."""
    processes, options = CASES[case]
    options = {**options, "per_device_train_batch_size": 1, "save_steps": 2, "learning_rate": 1e-3}
    first = launch(processes, "first", max_steps=4, **options)
    check_checkpoint(first / "checkpoint-4", world, tmp_path)
    sharded = first / "checkpoint-4" / "pytorch_model_fsdp_0"
    assert len(list(sharded.glob("*.distcp"))) == (processes if "fsdp" in options else 0)
    rest = launch(processes, "rest", max_steps=4, resume_from_checkpoint=first / "checkpoint-2", **options)
    check_checkpoint(rest / "checkpoint-4", world, tmp_path)
    assert losses(rest)[-2:] == pytest.approx(losses(first)[-2:], rel=1e-4)


@needs_deepspeed
def test_zero3_with_lora_on_a_cpu_is_refused_in_one_line(world, rows, tmp_path):
    options = {**COMMON, **BFLOAT16, "deepspeed": "zero3", "tuner_type": "lora", "target_modules": "all-linear"}
    names = {"model": world.lmm, "mask_tokenizer": world.mask_tokenizer, "dataset": rows, "output_dir": tmp_path}
    done = run_swift("sft", *flags(**options, **names), cwd=tmp_path, NPROC_PER_NODE="1")
    assert done.returncode != 0
    assert "ValueError: deepspeed=zero3 with LoRA: PEFT gathers token embeddings on CUDA devices only" in done.stderr


def test_single_process_of_torchrun_trains(launch):
    assert len(losses(launch(1, ddp_backend="gloo", max_steps=1, save_strategy="no", **FLOAT32))) == 1


@pytest.mark.slow
def test_process_without_any_mask_trains(launch, world, tmp_path):
    """One of two processes never has a mask."""
    without = {key: value for key, value in world.row("<image>What?", "Nothing.").items() if key != "masks"}
    uneven = write_rows(tmp_path / "uneven.jsonl", [world.segment(world.left), without] * 4)
    order = {"train_dataloader_shuffle": False, "dataset_shuffle": False}
    folder = launch(
        2, dataset=uneven, per_device_train_batch_size=1, max_steps=3, save_strategy="no", **order, **FLOAT32
    )
    assert len(losses(folder)) == 3
