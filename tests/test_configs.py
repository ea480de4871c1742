"""ms-swift parses every shipped config, and the header of each agrees with its values."""

import json
import os
import re
import subprocess
import sys
from math import prod
from pathlib import Path

import pytest
import swift
import yaml

from himtok_plugin.resources import config_names, config_path

# Base -> model type that ms-swift derives from config.json, the only file of a model that its parser opens.
MODEL_TYPES = {
    "internvl": "internvl",
    "qwen3vl": "qwen3_vl",
    "qwen25vl": "qwen2_5_vl",
    "tiny": "internvl",
    "pocket": "internvl",
}
SMALL = ("tiny", "pocket", "box")  # bases that this project builds and has its own recipes for
NAME = re.compile(r"stage(?P<stage>[123])_(?P<base>[a-z0-9]+)_(?P<tuner>full|lora)(_(1gpu|8gpu|multinode))?")
# The paper's recipe of stages 2 and 3 (arXiv 2503.13026).
RECIPE = {
    "2": {"learning_rate": 4e-5, "global_batch": 64, "mask_loss_weight": 1.0, "hierarchical_loss_weight": 1.0},
    "3": {"learning_rate": 1e-5, "global_batch": 128, "mask_loss_weight": 0.0, "hierarchical_loss_weight": 0.0},
}
SCHEDULE = {"weight_decay": 0.05, "warmup_ratio": 0.03, "lr_scheduler_type": "cosine", "num_train_epochs": 1}
SHOWN = [*RECIPE["2"], *SCHEDULE, "per_device_train_batch_size", "gradient_accumulation_steps", "max_length"]
SHOWN.remove("global_batch")
SET_BY_CONFIGS = {"OMP_NUM_THREADS", "MAX_NUM", "MAX_PIXELS"}
# Without deepspeed installed, --deepspeed is removed from the parser's input; another test checks its value.
PARSE = """
import json, os, sys
from himtok_plugin import startup
startup.activate("himtok")
from importlib.util import find_spec
from swift.arguments import SftArguments
from swift.cli.main import parse_yaml_args
from swift.utils import parse_args

environment = dict(os.environ)
for name, argv in json.load(open(sys.argv[1])).items():
    os.environ.clear()
    os.environ.update(environment)
    parse_yaml_args(argv)
    if "--deepspeed" in argv and find_spec("deepspeed") is None:
        i = argv.index("--deepspeed")
        del argv[i : i + 2]
    args, remaining = parse_args(SftArguments, argv)
    shown = {key: getattr(args, key) for key in json.loads(sys.argv[3])}
    shown.update(
        remaining=remaining,
        model_type=args.model_type,
        tuner_type=args.tuner_type,
        environment={k: v for k, v in os.environ.items() if k not in environment},
    )
    with open(sys.argv[2], "a") as out:
        print(json.dumps({name: shown}), file=out)
"""


def read_text_of(name):
    return config_path(name).read_text(encoding="utf-8")


def read_header(name):
    """Return the leading comment without its `# `."""
    lines = read_text_of(name).splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:].removeprefix(" ") for line in lines[:count])


def read_config(name):
    return yaml.safe_load(read_text_of(name))


def get_part(name, key):
    return NAME.fullmatch(name)[key]


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """Write config.json of a tiny model for each base; return base -> folder."""
    from transformers import InternVLConfig, Qwen2_5_VLConfig, Qwen3VLConfig

    from himtok_plugin.mask_tokenizer.configuration import MaskTokenizerConfig

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text["num_key_value_heads"] = 2
    configs = {
        "internvl": InternVLConfig(text_config=text, architectures=["InternVLForConditionalGeneration"]),
        "qwen3vl": Qwen3VLConfig(text_config=text, architectures=["Qwen3VLForConditionalGeneration"]),
        "qwen25vl": Qwen2_5_VLConfig(text_config=text, architectures=["Qwen2_5_VLForConditionalGeneration"]),
        "stage1": MaskTokenizerConfig(image_size=256, architectures=["MaskTokenizer"]),
    }
    root = tmp_path_factory.mktemp("models")
    for base, config in configs.items():
        config.save_pretrained(root / base)
    return {**{base: root / base for base in configs}, **{base: root / "internvl" for base in SMALL}}


@pytest.fixture(scope="module")
def parsed(tiny_models, tmp_path_factory):
    """Parse every config with ms-swift and the tiny model, in one process; return config name -> arguments."""
    folder = tmp_path_factory.mktemp("parsed")
    commands = {}
    for name in config_names():
        model = tiny_models["stage1" if get_part(name, "stage") == "1" else get_part(name, "base")]
        rest = ["--model", model, "--dataset", "rows.jsonl", "--output_dir", folder / "out" / name]
        if not read_config(name).get("use_cpu"):
            rest += ["--use_cpu", "true"]  # ms-swift rejects bfloat16 if there is neither a GPU nor this flag
        commands[name] = [str(argument) for argument in (config_path(name), *rest)]
    (folder / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run(
        [sys.executable, "-c", PARSE, folder / "commands.json", folder / "parsed.jsonl", json.dumps(SHOWN)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key not in SET_BY_CONFIGS},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = {}
    for line in (folder / "parsed.jsonl").read_text().splitlines():
        results.update(json.loads(line))
    return results


@pytest.mark.parametrize("name", config_names())
def test_ms_swift_parses_every_config_without_unknown_keys(name, parsed):
    config, found = read_config(name), parsed[name]
    assert NAME.fullmatch(name) and config["plugin"] == "himtok"
    assert found["remaining"] == []
    expected = "himtok_mask_tokenizer" if get_part(name, "stage") == "1" else MODEL_TYPES[get_part(name, "base")]
    assert found["model_type"] == expected and found["tuner_type"] == get_part(name, "tuner")
    for key in set(SHOWN) & set(config):
        # YAML reads 1.5e-3 as a number but 1e-3 as a string, which the parser converts.
        assert found[key] == (float(config[key]) if isinstance(found[key], float) else config[key]), key
    environment = config.get("ENV", {})
    assert {key: found["environment"].get(key) for key in environment} == environment


@pytest.mark.parametrize(
    "name", [n for n in config_names() if get_part(n, "stage") != "1" and get_part(n, "base") not in SMALL]
)
def test_stages_two_and_three_have_the_papers_hyperparameters(name, parsed):
    found, stage = parsed[name], get_part(name, "stage")
    recipe = dict(RECIPE[stage])
    if get_part(name, "tuner") == "lora":
        recipe["learning_rate"] = 1e-4
    assert read_global_batch(name)[0] == recipe.pop("global_batch")
    assert {key: found[key] for key in recipe} == recipe
    assert {key: found[key] for key in SCHEDULE} == SCHEDULE and found["max_length"] == 2048
    tiles = {"2": 1, "3": 4}[stage]
    images = {"MAX_NUM": str(tiles)} if get_part(name, "base") == "internvl" else {"MAX_PIXELS": str(tiles * 448**2)}
    assert read_config(name)["ENV"] == images


@pytest.mark.parametrize("name", [n for n in config_names() if get_part(n, "base") not in SMALL])
def test_the_mask_losses_of_stage_two_slow_down_no_lmm_and_spoil_no_detokenizer(name):
    config, is_stage_two = read_config(name), get_part(name, "stage") == "2"
    assert config.get("mask_gradient_ratio") == (0.3 if is_stage_two else None)
    if is_stage_two:
        assert config.get("detokenizer_lr", config["learning_rate"]) == 4e-5


def read_global_batch(name):
    """Return the global batch size in the header and its factors."""
    found = re.search(r"^Global batch: (\d+) = (.+)$", read_header(name), re.MULTILINE)
    assert found, "no line `Global batch: N = ...`"
    factors = {unit: int(count) for count, unit in re.findall(r"(\d+) (machines?|GPUs?|per GPU|accumulated)", found[2])}
    assert prod(factors.values()) == int(found[1])
    return int(found[1]), factors


@pytest.mark.parametrize("name", [name for name in config_names() if get_part(name, "base") == "tiny"])
def test_configs_for_cpus_do_not_use_bfloat16(name):
    config = read_config(name)
    assert config["use_cpu"] is True and config["bf16"] is False


@pytest.mark.parametrize("name", [name for name in config_names() if get_part(name, "base") not in SMALL])
def test_the_global_batch_in_the_header_follows_from_launch_line_and_config(name):
    _, factors = read_global_batch(name)
    config, header = read_config(name), read_header(name)
    processes = [int(n) for n in re.findall(r"(?:NNODES|NPROC_PER_NODE)=(\d+)", header)]
    in_header = prod(factors.get(unit, 1) for unit in ("machine", "machines", "GPU", "GPUs"))
    assert in_header == prod(processes)
    assert factors["per GPU"] == config["per_device_train_batch_size"]
    assert factors["accumulated"] == config["gradient_accumulation_steps"]


@pytest.mark.parametrize("name", config_names())
def test_deepspeed_is_one_of_ms_swifts_own_configurations(name):
    config = read_config(name)
    if "deepspeed" not in config:
        assert not re.search("_full_(8gpu|multinode)", name)
        return
    file = Path(swift.__file__).parent / "config" / f"{config['deepspeed']}.json"
    stage = json.loads(file.read_text())["zero_optimization"]["stage"]
    assert stage == {"2": 2, "3": 3}[get_part(name, "stage")]


@pytest.mark.parametrize("name", config_names())
def test_header_states_needs_launch_rows_and_override(name):
    header = read_header(name)
    for word in ("Needs: ", "Launch", "Rows: ", "Override: "):
        assert re.search(rf"^{word}", header, re.MULTILINE), word
    launch = re.search(r"swift sft swift_configs/(\w+)\.yaml((?: \\\n| .*)+)", header)
    assert launch and launch[1] == name
    assert all(flag in header for flag in ("--model ", "--dataset ", "--output_dir "))
    assert ("MASTER_ADDR=" in header and "NODE_RANK=" in header) == name.endswith("_multinode")
    if get_part(name, "tuner") == "lora":
        assert "--merge_lora true" in header
    if get_part(name, "base") not in (*SMALL, "large"):
        assert "Estimated" in header  # not measured in this project


@pytest.mark.parametrize("name", [name for name in config_names() if get_part(name, "base") == "internvl"])
def test_the_tiles_in_the_header_are_those_of_the_config(name):
    tiles, tokens = re.search(
        r"^# Images: (?:up to )?(\w+) tiles? of 448.* (\d+) image tokens", read_text_of(name), re.M
    ).groups()
    count = {"one": 1}.get(tiles) or int(tiles)
    assert read_config(name)["ENV"]["MAX_NUM"] == str(count)
    assert int(tokens) == 256 * (count if count == 1 else count + 1)  # several tiles come with a thumbnail
