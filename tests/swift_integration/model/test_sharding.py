"""ZeRO-3: the mask loss gathers the de-tokenizer, layer by layer, and no other parameter of the model."""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
from runs import flags, read_rows, run_swift, write_rows

from himtok_plugin.swift_integration.model.detokenizer import DETOKENIZER_MODULES, load_detokenizer

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is an extra")

PROCESSES, STEPS = 2, 4
# Nothing stays gathered for being small or used again soon, and nothing is fetched ahead of its use.
STRICT = {
    "stage": 3,
    "overlap_comm": False,
    "reduce_bucket_size": 100_000,
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_gather_16bit_weights_on_model_save": True,
}
BATCH = {"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}

# A further plugin of the run: notes what DeepSpeed gathers, by whichever of its ways, within which part of a step.
RECORDER = """
import json
import os
from functools import wraps

from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from himtok_plugin.swift_integration.training.trainer import MaskTrainer

STATE = {"part": None, "step": -1, "names": {}}


def note(**event):
    with open(f"gathers_{os.environ['RANK']}.jsonl", "a") as file:
        file.write(json.dumps({"part": STATE["part"], "step": STATE["step"], **event}) + "\\n")


def live():
    return [name for name, parameter in STATE["names"].items() if parameter.ds_status == ZeroParamStatus.AVAILABLE]


def noting(parameter, way):
    gather = getattr(parameter, way)

    @wraps(gather)
    def gather_and_note(param_list=None, *args, **kwargs):
        ids = {p.ds_id for p in ([parameter] if param_list is None else param_list)
               if p.ds_status == ZeroParamStatus.NOT_AVAILABLE}
        names = [name for name, p in STATE["names"].items() if p.ds_id in ids]
        assert len(names) == len(ids)
        if STATE["part"] and names:
            note(way=way, gathered=names)
        return gather(param_list, *args, **kwargs)

    setattr(parameter, way, gather_and_note)


def within(part, name):
    inner = getattr(MaskTrainer, name)

    @wraps(inner)
    def run(self, *args, **kwargs):
        if not STATE["names"]:
            STATE["names"].update(self.model.named_parameters())
            for parameter in STATE["names"].values():
                noting(parameter, "all_gather")
                noting(parameter, "all_gather_coalesced")
        before, STATE["part"] = STATE["part"], part
        STATE["step"] += part == "step"
        try:
            return inner(self, *args, **kwargs)
        finally:
            if part == "mask loss":
                note(live=live())
            STATE["part"] = before

    setattr(MaskTrainer, name, run)


within("step", "training_step")
within("forward", "compute_loss")
within("mask loss", "_compute_mask_loss")
"""


@pytest.fixture
def gathers(world, tmp_path):
    """What each process gathered in four steps of one row each, some of them without a mask; as the recorder noted."""

    def run(**options):
        (tmp_path / "recorder.py").write_text(RECORDER)
        config = {"zero_optimization": STRICT, "bf16": {"enabled": "auto"}, "gradient_clipping": "auto", **BATCH}
        (tmp_path / "zero3.json").write_text(json.dumps(config))
        without = {k: v for k, v in world.row("<image>What is it?", "No shape.").items() if k != "masks"}
        one, other = world.segment(world.left), world.segment(world.right)
        argv = flags(
            plugin="himtok",
            external_plugins=[Path(__file__).parents[1] / "deepspeed_on_cpus.py", tmp_path / "recorder.py"],
            model=world.lmm,
            mask_tokenizer=world.mask_tokenizer,
            dataset=write_rows(tmp_path / "rows.jsonl", [one, other, one, without, without, one, without, without]),
            output_dir=tmp_path / "out",
            deepspeed=tmp_path / "zero3.json",
            ddp_backend="gloo",
            use_cpu=True,
            tuner_type="full",
            torch_dtype="bfloat16",
            bf16=True,
            check_model=False,
            report_to="none",
            add_version=False,
            split_dataset_ratio=0,
            save_strategy="no",
            load_from_cache_file=False,
            dataloader_num_workers=0,
            gradient_checkpointing=False,
            attn_impl="eager",
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            train_dataloader_shuffle=False,
            dataset_shuffle=False,
            max_steps=STEPS,
            **options,
        )
        done = run_swift("sft", *argv, cwd=tmp_path, NPROC_PER_NODE=str(PROCESSES))
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return [read_rows(tmp_path / f"gathers_{rank}.jsonl") for rank in range(PROCESSES)]

    return run


def names_in(events, part, step=None):
    return [n for e in events if e["part"] == part and step in (None, e["step"]) for n in e.get("gathered", ())]


def test_mask_loss_gathers_the_detokenizer_and_nothing_else(gathers, world):
    modules = dict(load_detokenizer(world.mask_tokenizer).named_parameters())
    detokenizer = {f"mask_tokenizer.{name}" for name in modules if name.startswith(DETOKENIZER_MODULES)}
    assert len(detokenizer) < len(modules)  # there is a codebook as well
    for events in gathers(mask_loss_weight=1, hierarchical_loss_weight=1):
        for step in range(STEPS):
            # Once for the full prediction and once for all coarse ones, without masks as with them.
            assert Counter(names_in(events, "mask loss", step)) == dict.fromkeys(detokenizer, 2)
            assert not any("mask_tokenizer" in name for name in names_in(events, "forward", step))
            # Backwards through both, and the LMM's own.
            backward = Counter(names_in(events, "step", step))
            assert {name for name in backward if "mask_tokenizer" in name} == detokenizer
            assert max(backward[name] for name in detokenizer) <= 2
        left = [event["live"] for event in events if "live" in event]
        assert left == [[]] * STEPS  # what was gathered is given back, part by part
        ways = {event["way"] for event in events if event["part"] == "mask loss" and "way" in event}
        assert ways == {"all_gather_coalesced"}  # as modules are called, not as something reads a parameter by the way


@pytest.mark.slow
def test_without_a_mask_loss_nothing_of_the_mask_tokenizer_is_gathered(gathers):
    for events in gathers():
        assert names_in(events, "forward")
        assert not any("mask_tokenizer" in name for event in events for name in event.get("gathered", ()))
