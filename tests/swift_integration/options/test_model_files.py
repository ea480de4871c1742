"""Files of models are looked at before ms-swift loads anything: every folder of a command, and what a CPU trains in."""

import shutil

import pytest
import torch
from runs import COMMON, flags

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16397461266\n"
PAGE = b"<!DOCTYPE html><html><head><title>A model</title></head></html>"


@pytest.fixture
def model(world, tmp_path):
    folder = shutil.copytree(world.lmm, tmp_path / "model")
    shutil.copytree(world.mask_tokenizer, folder / "mask_tokenizer")
    (folder / "args.json").write_text("{}")
    return folder


def parse(kind="InferArguments", **options):
    import swift.arguments
    from swift.utils import parse_args

    return parse_args(getattr(swift.arguments, kind), flags(**options))[0]


@pytest.mark.parametrize("kind", ["InferArguments", "DeployArguments", "ExportArguments", "SftArguments"])
@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("model.safetensors", None, "a file that is cut off after"),
        ("model.safetensors", POINTER, "a git-lfs pointer to a file of 16,397,461,266 bytes"),
        ("config.json", PAGE, r"a web page \(A model\)"),
        ("tokenizer.json", POINTER, "a git-lfs pointer"),
        ("args.json", PAGE, "a web page"),
        ("mask_tokenizer/model.safetensors", b"", "an empty file"),
        ("mask_tokenizer/config.json", b'{"error": "Entry not found"}', "a server's error message"),
    ],
)
def test_an_unusable_file_of_the_model_is_named(model, world, kind, name, content, named):
    (model / name).write_bytes((model / name).read_bytes()[:-50] if content is None else content)
    options = {"model": model, **({**COMMON, "dataset": world.scenes} if kind == "SftArguments" else {})}
    with pytest.raises(ValueError, match=f"{model / name}: got {named}"):
        parse(kind, **options)


@pytest.mark.parametrize("option", ["adapters", "mask_tokenizer", "refiner_model"])
def test_other_folders_of_a_command_are_looked_at_as_well(model, tmp_path, option):
    other = tmp_path / "other"
    other.mkdir()
    (other / ("adapter_config.json" if option == "adapters" else "config.json")).write_bytes(PAGE)
    with pytest.raises(ValueError, match=r"other/.*config.json: got a web page"):
        parse(model=model, **{option: other})


def test_a_weights_file_of_a_mask_tokenizer_is_looked_at(model, tmp_path):
    (tmp_path / "himtok.pth").write_bytes(POINTER)
    with pytest.raises(ValueError, match="himtok.pth: got a git-lfs pointer"):
        parse(model=model, mask_tokenizer=tmp_path / "himtok.pth")


def test_a_missing_shard_is_named(model):
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match="got no model-00002-of-00002.safetensors, expected all 2 files"):
        parse(model=model)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, False), ({"fp16": True}, True), ({"torch_dtype": "float16"}, True)],
)
def test_half_precision_is_no_default_on_a_cpu(world, tmp_path, options, expected):
    if torch.accelerator.is_available():
        pytest.skip("needs a machine without an accelerator")
    common = {**COMMON, "model": world.lmm, "mask_tokenizer": world.mask_tokenizer, "dataset": world.scenes}
    arguments = parse("SftArguments", **{**common, "output_dir": tmp_path, "tuner_type": "lora", **options})
    assert arguments.fp16 is expected
