"""The plugin's options: validated, part of ms-swift's argument classes, saved without the plugin's own path."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from paths import ROOT

from himtok_plugin.active_plugins import ACTIVE_PLUGINS_VARIABLE
from himtok_plugin.lmm.vocabulary import NOISE_SCALE
from himtok_plugin.swift_integration.options.arguments import HimTokArguments
from himtok_plugin.swift_integration.options.plugin_flag import PluginFlag

needs_swift = pytest.mark.skipif(importlib.util.find_spec("swift") is None, reason="ms-swift is not installed")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mask_loss_weight", -1.0),
        ("hierarchical_loss_weight", float("nan")),
        ("mask_dice_weight", float("inf")),
        ("commitment_weight", "much"),
        ("codebook_weight", -0.1),
        ("entropy_weight", None),
        ("prefix_loss_weight", True),
        ("mask_gradient_ratio", -0.5),
        ("mask_gradient_ratio", float("inf")),
        ("detokenizer_max_grad_norm", 0),
        ("mask_rows_scale", 0),
        ("num_coarse_levels", 0),
        ("num_coarse_levels", 32),
        ("num_coarse_levels", 2.5),
        ("mask_decoding", "medium"),
        ("num_mask_tokens", 0),
        ("min_masks", -1),
        ("min_masks", 1.0),
        ("max_masks", -1),
        ("max_masks", True),
        ("mask_early_stop", 0.0),
        ("mask_early_stop", 1),
        ("mask_early_stop", float("nan")),
        ("mask_threshold", 0.0),
        ("mask_threshold", 1.0),
        ("mask_resize", "cubic"),
        ("min_score", -0.1),
        ("min_score", 1.5),
        ("refiner", "sam9"),
        ("mask_previews", [4, 0]),
        ("mask_previews", 4),
        ("max_image_pixels", 0),
        ("max_request_masks", -1),
        ("continuous_warmup_steps", -1),
        ("dead_code_steps", 1.5),
    ],
)
def test_invalid_value_is_refused_with_field_value_and_expectation(name, value):
    with pytest.raises(ValueError) as error:
        HimTokArguments(**{name: value})
    assert str(error.value).startswith(f"{name}: got {value!r}, expected ")


@dataclass
class InferenceOptions(HimTokArguments):
    """The fields of ms-swift's `InferArguments` that matter here."""

    infer_backend: str = "transformers"
    stream: bool | None = None


def test_zoom_needs_the_native_engine_and_complete_answers():
    assert InferenceOptions(refiner="zoom").stream is False and InferenceOptions(refiner="sam2", stream=True).stream
    assert InferenceOptions(refiner="zoom", infer_backend="pt") and HimTokArguments(refiner="zoom")
    with pytest.raises(ValueError, match="infer_backend: got 'vllm', expected 'transformers' with --refiner zoom"):
        InferenceOptions(refiner="zoom", infer_backend="vllm")
    with pytest.raises(ValueError, match="stream: got True, expected False with --refiner zoom"):
        InferenceOptions(refiner="zoom", stream=True)


class SftArguments(HimTokArguments):
    """Validation recognises ms-swift's class by its name."""


class RLHFArguments(SftArguments):
    """As above."""


def test_the_default_scale_of_new_embeddings_is_that_of_the_function():
    assert HimTokArguments().mask_rows_scale == NOISE_SCALE


def test_options_without_effect_are_refused_in_training_only():
    refused = {
        "train_detokenizer": True,
        "detokenizer_lr": 1e-4,
        "detokenizer_max_grad_norm": 1.0,
        "mask_gradient_ratio": 1.0,
    }
    for options in ({name: value} for name, value in refused.items()):
        (name,) = options
        with pytest.raises(ValueError, match=f"^{name}: got .*, expected .* with a mask loss only"):
            SftArguments(**options)
        assert SftArguments(**options, hierarchical_loss_weight=1.0) and HimTokArguments(**options)
    assert SftArguments(detokenizer_lr=1e-4, detokenizer_max_grad_norm=1.0, train_detokenizer=False)
    with pytest.raises(ValueError, match="^mask_loss_weight: got 1.0, expected 0 with `swift rlhf`"):
        RLHFArguments(mask_loss_weight=1.0)


def with_fields(base, **values):
    """Options with fields of ms-swift beside the plugin's own."""
    return type(base.__name__, (base,), {"__init__": base.__init__, **values})


STAGE_TWO = {"mask_loss_weight": 1.0}


def test_the_detokenizer_is_clipped_by_itself_only_where_the_others_are_clipped():
    unclipped = with_fields(SftArguments, max_grad_norm=0.0)
    assert unclipped(**STAGE_TWO)
    with pytest.raises(ValueError, match="^max_grad_norm: got 0.0, expected a number > 0 with --detokenizer_max_grad"):
        unclipped(detokenizer_max_grad_norm=1.0, **STAGE_TWO)


ZERO3 = '{"zero_optimization": {"stage": 3}}'


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_liger_kernel": True}, "use_liger_kernel: got True, expected false with a mask loss, which needs the"),
        (
            {"predict_with_generate": True, "deepspeed": "zero3", "ds3_gather_for_generation": False},
            "ds3_gather_for_generation: got False, expected true with ZeRO-3, predict_with_generate and a mask loss",
        ),
        (
            {"predict_with_generate": True, "deepspeed": ZERO3, "ds3_gather_for_generation": False},
            "ds3_gather_for_generation: got False",
        ),
        ({"predict_with_generate": True, "fsdp": "fsdp2"}, "fsdp: got 'fsdp2', expected None with predict_with_gen"),
    ],
)
def test_kernels_and_sharding_with_which_stage_two_would_fail_later_are_refused(fields, message):
    fields = {"eval_metric": "mask", "metric_for_best_model": None, **fields}
    arguments = with_fields(SftArguments, **fields)
    with pytest.raises(ValueError) as error:
        arguments(**STAGE_TWO)
    assert str(error.value).startswith(message)
    if "fsdp" not in fields:
        assert arguments()  # without a mask loss they work
    assert with_fields(HimTokArguments, **fields)(**STAGE_TWO)  # as read from the checkpoint of such a run


def test_sharding_that_works_is_accepted():
    generates = {"predict_with_generate": True, "eval_metric": "mask", "metric_for_best_model": None}
    for deepspeed in (None, "zero2", "zero3", ZERO3, {"zero_optimization": {"stage": 3}}, "nowhere.json"):
        assert with_fields(SftArguments, deepspeed=deepspeed, **generates)(**STAGE_TWO)
    assert with_fields(SftArguments, deepspeed="zero2", ds3_gather_for_generation=False, **generates)(**STAGE_TWO)
    assert with_fields(SftArguments, fsdp="fsdp2")(**STAGE_TWO)


def test_rollouts_of_ms_swifts_own_engine_are_refused_with_fsdp():
    grpo = {"rlhf_type": "grpo", "fsdp": "fsdp2"}
    with pytest.raises(ValueError, match="^fsdp: got 'fsdp2', expected None with rlhf_type grpo in ms-swift's own"):
        with_fields(RLHFArguments, **grpo)()
    assert with_fields(RLHFArguments, use_vllm=True, **grpo)()
    assert with_fields(RLHFArguments, rlhf_type="dpo", fsdp="fsdp2")()


def test_boundary_values_are_accepted():
    HimTokArguments(mask_loss_weight=0, num_coarse_levels=31, num_mask_tokens=1, mask_threshold=1e-3, dead_code_steps=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_masks": 2, "max_masks": 1}, "max_masks: got 1, expected an integer >= min_masks=2 or None"),
        ({"mask_labels": True, "max_masks": 0}, "max_masks: got 0, expected at least 1 with mask_labels"),
        *(
            ({"constrained_decoding": False, name: value}, "constrained_decoding: got False, expected True with ")
            for name, value in {"min_masks": 1, "max_masks": 3, "mask_labels": True, "mask_early_stop": 0.5}.items()
        ),
    ],
)
def test_contradicting_constraints_are_refused(options, message):
    with pytest.raises(ValueError) as error:
        HimTokArguments(**options)
    assert str(error.value).startswith(message)


def test_single_plugin_name_becomes_a_list():
    assert PluginFlag(plugin="himtok").plugin == ["himtok"]


def test_defaults_are_not_shared():
    PluginFlag().plugin.append("other")
    HimTokArguments().data_root.append("other")
    assert PluginFlag().plugin == HimTokArguments().data_root == []


def run_python(code: str, *arguments: object) -> str:
    environment = {name: value for name, value in os.environ.items() if name != ACTIVE_PLUGINS_VARIABLE}
    environment |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert child.returncode == 0, child.stderr
    return child.stdout


# What the plugin registers does not matter here, hence the stand-in.
ARGUMENTS_IN_SWIFT = """
import dataclasses, json, pickle, sys, types
from pathlib import Path
from himtok_plugin import startup
startup.activate()
registered = []
register = types.ModuleType("himtok_plugin.swift_integration.register")
register.register = lambda: registered.append("himtok")
sys.modules[register.__name__] = register

import swift.arguments
from himtok_plugin.swift_integration.options import current_arguments
from himtok_plugin.swift_integration.options.arguments import HimTokArguments
from swift.arguments import BaseArguments
from swift.arguments.base_args import base_args

own = {field.name for field in dataclasses.fields(HimTokArguments)}
classes = [getattr(swift.arguments, name) for name in
           ("SftArguments", "PretrainArguments", "RLHFArguments", "InferArguments", "DeployArguments", "EvalArguments",
            "ExportArguments", "AppArguments", "SamplingArguments", "RolloutArguments")]
result = {"without": [c.__name__ for c in classes if not own <= {field.name for field in dataclasses.fields(c)}]}
native = {base for c in classes for base in c.__mro__} - {HimTokArguments}
result["clashes"] = sorted(own & {name for c in native for name in vars(c).get("__annotations__", {})})

folder = Path(sys.argv[1])
arguments = BaseArguments(model=str(folder), model_type="qwen2", template="qwen2_5", mask_loss_weight=0.5)
result["registered"] = registered
result["external_plugins"] = arguments.external_plugins
arguments.save_args(str(folder / "saved"))
result["saved"] = json.loads((folder / "saved" / "args.json").read_text())
result["external_plugins_after_saving"] = arguments.external_plugins
pickled = pickle.dumps(arguments)
result["unpickled"] = pickle.loads(pickled).mask_loss_weight
result["same_process"] = current_arguments.get_current_arguments() is arguments
current_arguments._current.clear()  # as in a process that was spawned with them
received = pickle.loads(pickled)
result["spawned_process"] = current_arguments.get_current_arguments() is received
try:
    BaseArguments(model=str(folder), model_type="qwen2", template="qwen2_5", mask_threshold=2.0)
except ValueError as error:
    result["error"] = str(error)
print("\\n" + json.dumps(result))
"""


@pytest.fixture(scope="module")
def in_swift(tmp_path_factory):
    """Arguments of a checkpoint whose args.json has the plugin's path in a deleted environment, and another plugin."""
    if importlib.util.find_spec("swift") is None:
        pytest.skip("ms-swift is not installed")
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    (folder / "other.py").write_text("")
    gone = "/gone/lib/python3.10/site-packages/himtok_plugin/plugin/himtok.py"
    (folder / "args.json").write_text(json.dumps({"external_plugins": [gone, str(folder / "other.py")]}))
    result = json.loads(run_python(ARGUMENTS_IN_SWIFT, folder).splitlines()[-1])
    return {**result, "other": str(folder / "other.py")}


def test_every_command_has_the_options(in_swift):
    assert in_swift["without"] == []


def test_no_option_has_the_name_of_one_of_ms_swift(in_swift):
    assert in_swift["clashes"] == []


def test_path_recorded_in_another_environment_is_replaced_and_other_plugins_kept(in_swift):
    plugin_file = str(ROOT / "himtok_plugin" / "plugin" / "himtok.py")
    assert in_swift["external_plugins"] == [plugin_file, in_swift["other"]]
    assert in_swift["registered"] == ["himtok"]


def test_args_json_names_the_plugin_and_not_its_path(in_swift):
    saved = in_swift["saved"]
    assert (saved["plugin"], saved["external_plugins"]) == (["himtok"], [in_swift["other"]])
    assert saved["mask_loss_weight"] == 0.5
    assert "himtok.py" not in json.dumps(saved)
    assert in_swift["external_plugins_after_saving"] == in_swift["external_plugins"]


def test_arguments_survive_the_pickle_of_a_spawned_process(in_swift):
    assert in_swift["unpickled"] == 0.5
    assert in_swift["same_process"] and in_swift["spawned_process"]


def test_validation_runs_in_ms_swift(in_swift):
    assert in_swift["error"].startswith("mask_threshold: got 2.0, expected ")


@needs_swift
def test_help_of_swift_sft_lists_the_options():
    script = Path(importlib.util.find_spec("swift").origin).parent / "cli" / "sft.py"
    code = (
        "import runpy, sys; from himtok_plugin import startup\n"
        "sys.argv = sys.argv[1:]; startup.run(); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    text = run_python(code, script, "--plugin", "himtok", "--help")
    for option in ("--plugin", "--mask_loss_weight", "--mask_decoding {soft,hard}", "--num_train_epochs"):
        assert option in text
