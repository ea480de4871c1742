"""The shipped configs: ms-swift's parser takes every one of them, and what a header says is what the config does."""

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

# How a tiny model of each base calls itself in its config.json, the one file of a model that the parser opens, and the
# model type that ms-swift then knows it by.
MODEL_TYPES = {
    "internvl": "internvl",
    "qwen3vl": "qwen3_vl",
    "qwen25vl": "qwen2_5_vl",
    "tiny": "internvl",
    "pocket": "internvl",
}
SMALL = ("tiny", "pocket")  # bases that this project builds, with recipes of its own
NAME = re.compile(r"stage(?P<stage>[123])_(?P<base>[a-z0-9]+)_(?P<tuner>full|lora)(_(1gpu|8gpu|multinode))?")
# The reference's recipe, stages 2 and 3 (arXiv 2503.13026).
RECIPE = {
    "2": {"learning_rate": 4e-5, "global_batch": 64, "mask_loss_weight": 1.0, "hierarchical_loss_weight": 1.0},
    "3": {"learning_rate": 1e-5, "global_batch": 128, "mask_loss_weight": 0.0, "hierarchical_loss_weight": 0.0},
}
SCHEDULE = {"weight_decay": 0.05, "warmup_ratio": 0.03, "lr_scheduler_type": "cosine", "num_train_epochs": 1}
SHOWN = [*RECIPE["2"], *SCHEDULE, "per_device_train_batch_size", "gradient_accumulation_steps", "max_length"]
SHOWN.remove("global_batch")
SET_BY_CONFIGS = {"OMP_NUM_THREADS", "MAX_NUM", "MAX_PIXELS"}
# deepspeed is left out of the parser's input where it is not installed; the test of its key is another.
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


def text_of(name):
    return config_path(name).read_text(encoding="utf-8")


def header_of(name):
    """The leading comment, without its `# `."""
    lines = text_of(name).splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line[1:].removeprefix(" ") for line in lines[:count])


def config_of(name):
    return yaml.safe_load(text_of(name))


def part(name, key):
    return NAME.fullmatch(name)[key]


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory):
    """Base -> folder with the configuration of a tiny model of its family."""
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
    """Name -> what ms-swift's parser made of that config, with the tiny model; all in one process."""
    folder = tmp_path_factory.mktemp("parsed")
    commands = {}
    for name in config_names():
        model = tiny_models["stage1" if part(name, "stage") == "1" else part(name, "base")]
        rest = ["--model", model, "--dataset", "rows.jsonl", "--output_dir", folder / "out" / name]
        if not config_of(name).get("use_cpu"):
            rest += ["--use_cpu", "true"]  # bfloat16 is refused where there is neither a GPU nor this
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
def test_ms_swift_parses_every_config_and_knows_every_key(name, parsed):
    config, found = config_of(name), parsed[name]
    assert NAME.fullmatch(name) and config["plugin"] == "himtok"
    assert found["remaining"] == []
    expected = "himtok_mask_tokenizer" if part(name, "stage") == "1" else MODEL_TYPES[part(name, "base")]
    assert found["model_type"] == expected and found["tuner_type"] == part(name, "tuner")
    for key in set(SHOWN) & set(config):
        # YAML reads 1.5e-3 as a number, but would read 1e-3 as a word, which the parser makes one.
        assert found[key] == (float(config[key]) if isinstance(found[key], float) else config[key]), key
    environment = config.get("ENV", {})
    assert {key: found["environment"].get(key) for key in environment} == environment


@pytest.mark.parametrize(
    "name", [n for n in config_names() if part(n, "stage") != "1" and part(n, "base") not in SMALL]
)
def test_stages_two_and_three_follow_the_reference(name, parsed):
    found, stage = parsed[name], part(name, "stage")
    recipe = dict(RECIPE[stage])
    if part(name, "tuner") == "lora":
        recipe["learning_rate"] = 1e-4
    assert global_batch(name)[0] == recipe.pop("global_batch")
    assert {key: found[key] for key in recipe} == recipe
    assert {key: found[key] for key in SCHEDULE} == SCHEDULE and found["max_length"] == 2048
    tiles = {"2": 1, "3": 4}[stage]
    images = {"MAX_NUM": str(tiles)} if part(name, "base") == "internvl" else {"MAX_PIXELS": str(tiles * 448**2)}
    assert config_of(name)["ENV"] == images


def global_batch(name):
    """The header's number and the factors beside it."""
    found = re.search(r"^Global batch: (\d+) = (.+)$", header_of(name), re.MULTILINE)
    assert found, "no line `Global batch: N = ...`"
    factors = {unit: int(count) for count, unit in re.findall(r"(\d+) (machines?|GPUs?|per GPU|accumulated)", found[2])}
    assert prod(factors.values()) == int(found[1])
    return int(found[1]), factors


@pytest.mark.parametrize("name", [name for name in config_names() if part(name, "base") == "tiny"])
def test_configs_for_cpus_need_no_processor_with_bfloat16(name):
    config = config_of(name)
    assert config["use_cpu"] is True and config["bf16"] is False


@pytest.mark.parametrize("name", [name for name in config_names() if part(name, "base") not in SMALL])
def test_the_global_batch_of_the_header_is_that_of_launch_line_and_config(name):
    _, factors = global_batch(name)
    config, header = config_of(name), header_of(name)
    processes = [int(n) for n in re.findall(r"(?:NNODES|NPROC_PER_NODE)=(\d+)", header)]
    in_header = prod(factors.get(unit, 1) for unit in ("machine", "machines", "GPU", "GPUs"))
    assert in_header == prod(processes)
    assert factors["per GPU"] == config["per_device_train_batch_size"]
    assert factors["accumulated"] == config["gradient_accumulation_steps"]


@pytest.mark.parametrize("name", config_names())
def test_deepspeed_is_one_of_ms_swifts_own_configurations(name):
    config = config_of(name)
    if "deepspeed" not in config:
        assert not re.search("_full_(8gpu|multinode)", name)
        return
    file = Path(swift.__file__).parent / "config" / f"{config['deepspeed']}.json"
    stage = json.loads(file.read_text())["zero_optimization"]["stage"]
    assert stage == {"2": 2, "3": 3}[part(name, "stage")]


@pytest.mark.parametrize("name", config_names())
def test_header_says_needs_launch_rows_and_override(name):
    header = header_of(name)
    for word in ("Needs: ", "Launch", "Rows: ", "Override: "):
        assert re.search(rf"^{word}", header, re.MULTILINE), word
    launch = re.search(r"swift sft swift_configs/(\w+)\.yaml((?: \\\n| .*)+)", header)
    assert launch and launch[1] == name
    assert all(flag in header for flag in ("--model ", "--dataset ", "--output_dir "))
    assert ("MASTER_ADDR=" in header and "NODE_RANK=" in header) == name.endswith("_multinode")
    if part(name, "tuner") == "lora":
        assert "--merge_lora true" in header
    if part(name, "base") not in (*SMALL, "large"):
        assert "Estimated" in header  # nobody measured them here


@pytest.mark.parametrize("name", [name for name in config_names() if part(name, "base") == "internvl"])
def test_the_tiles_of_the_header_are_those_of_the_config(name):
    tiles, tokens = re.search(
        r"^# Images: (?:up to )?(\w+) tiles? of 448.* (\d+) image tokens", text_of(name), re.M
    ).groups()
    count = {"one": 1}.get(tiles) or int(tiles)
    assert config_of(name)["ENV"]["MAX_NUM"] == str(count)
    assert int(tokens) == 256 * (count if count == 1 else count + 1)  # several tiles come with a thumbnail
