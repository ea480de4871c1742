"""Adapters that vLLM, SGLang or LMDeploy cannot load are refused before the engine starts."""

import json
import shutil

import pytest
import torch
from runs import flags, run_swift
from safetensors.torch import load_file, save_file
from tiny_adapters import build_adapter

from himtok_plugin.adapters.split import split_adapter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter with trained token embeddings."""
    return build_adapter(tmp_path_factory.mktemp("adapter")).folder


@pytest.fixture(scope="module")
def plain(adapter, tmp_path_factory):
    """Folder with `base` and `adapter`, a LoRA alone."""
    out = tmp_path_factory.mktemp("plain") / "out"
    split_adapter(adapter, out)
    return out


@pytest.fixture
def altered(plain, tmp_path):
    """A copy of the LoRA alone with other fields in its configuration, or with further tensors."""

    def alter(tensors=None, **fields):
        folder = shutil.copytree(plain / "adapter", tmp_path / "altered")
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        if tensors:
            save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    return alter


def parse(cls="InferArguments", **options):
    """Parse options as `swift` does, without running anything."""
    import swift.arguments
    from swift.utils import parse_args

    arguments, unknown = parse_args(getattr(swift.arguments, cls), flags(load_data_args=False, **options))
    assert not unknown
    return arguments


BOTH_WAYS = (
    r"adapters: got '{0}' with trained token embeddings, which vLLM does not support, expected a merged checkpoint: "
    r"`swift export --plugin himtok --adapters {0} --merge_lora true`; or a plain LoRA: "
    r"`himtok split-adapter {0} OUT`, then --model OUT/base --adapters OUT/adapter"
)


@pytest.mark.parametrize("cls", ["InferArguments", "DeployArguments"])
def test_trained_token_embeddings_are_refused_with_both_ways_out(adapter, cls):
    with pytest.raises(ValueError, match=BOTH_WAYS.format(adapter)):
        parse(cls, infer_backend="vllm", adapters=adapter)


def test_every_named_adapter_of_a_server_is_checked(adapter, plain):
    adapters = [f"one={plain / 'adapter'}", f"two={adapter}"]
    with pytest.raises(ValueError, match=BOTH_WAYS.format(adapter)):
        parse("DeployArguments", infer_backend="vllm", model=plain / "base", adapters=adapters)


def test_weights_are_looked_at_if_the_configuration_says_nothing(adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    del config["trainable_token_indices"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="with trained token embeddings, which vLLM does not support"):
        parse(infer_backend="vllm", adapters=folder)


def test_configuration_is_looked_at_if_the_weights_are_no_safetensors(adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match="with trained token embeddings, which vLLM does not support"):
        parse(infer_backend="vllm", adapters=folder)


@pytest.mark.parametrize("options", [{"infer_backend": "transformers"}, {"infer_backend": "vllm", "merge_lora": True}])
def test_default_engine_and_merging_take_the_adapter(adapter, options):
    assert parse(adapters=adapter, **options).adapters == [str(adapter)]


def test_plain_lora_on_its_base_passes(plain):
    assert parse(infer_backend="vllm", adapters=plain / "adapter").model == str(plain / "base")
    named = parse("DeployArguments", infer_backend="vllm", model=plain / "base", adapters=f"one={plain / 'adapter'}")
    assert named.adapter_mapping == {"one": str(plain / "adapter")}


@pytest.mark.parametrize("backend", ["sglang", "lmdeploy"])
def test_engines_that_get_no_adapters_refuse_all(plain, backend):
    folder = plain / "adapter"
    message = rf"adapters: got \['{folder}'\] with --infer_backend {backend}, to which ms-swift passes none, expected a"
    with pytest.raises(ValueError, match=message):
        parse(infer_backend=backend, adapters=folder)
    assert parse(infer_backend=backend, model=plain / "base").infer_backend == backend


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["norm"]}, r"modules_to_save \['norm'\]"),
        ({"bias": "all"}, "bias 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"peft_type": "LOHA"}, "peft_type LOHA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_else_vllm_does_not_load_is_refused(altered, fields, named):
    message = rf"with {named}, which vLLM does not support, expected a merged checkpoint: `swift export "
    with pytest.raises(ValueError, match=message):
        parse(infer_backend="vllm", adapters=altered(**fields))


def test_lora_of_the_vision_tower_is_refused_unless_vllm_is_told_to_apply_it(altered):
    key = "base_model.model.model.vision_tower.encoder.layer.0.attention.q_proj.lora_A.weight"
    folder = altered({key: torch.zeros(4, 32)})
    with pytest.raises(ValueError, match="with LoRA of model.vision_tower, which vLLM does not support"):
        parse(infer_backend="vllm", adapters=folder)
    parse(infer_backend="vllm", adapters=folder, vllm_engine_kwargs='{"enable_tower_connector_lora": true}')


def test_rank_above_the_engines_limit_is_refused(altered):
    folder = altered({"base_model.model.model.language_model.layers.0.q_proj.lora_A.weight": torch.zeros(32, 8)})
    with pytest.raises(ValueError, match=f"vllm_max_lora_rank: got 16, expected at least 32, the rank of '{folder}'"):
        parse(infer_backend="vllm", adapters=folder)
    assert parse(infer_backend="vllm", adapters=folder, vllm_max_lora_rank=32).vllm_max_lora_rank == 32


def test_second_adapter_without_a_name_is_refused(plain):
    with pytest.raises(ValueError, match="with --infer_backend vllm, which answers with the first one, expected one"):
        parse(infer_backend="vllm", adapters=[plain / "adapter", plain / "adapter"])


def test_command_ends_with_one_line_before_it_imports_vllm(adapter, tmp_path):
    done = run_swift("infer", *flags(plugin="himtok", infer_backend="vllm", adapters=adapter), cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.strip().splitlines()[-1].startswith("ValueError: adapters: got"), done.stderr[-2000:]
    assert "No module named 'vllm'" not in done.stderr
