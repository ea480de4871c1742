"""QLoRA: an adapter trained on a 4-bit base infers on it and merges into the original base; 4-bit exports infer."""

import json

import pytest
import torch
from runs import LMM, STAGE_TWO, export, infer, read_rows, sft, write_rows
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from himtok_plugin import MaskTokenizer
from himtok_plugin.lmm.tiny_internvl import TinyLmmSize, build_tiny_internvl
from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_text import MASK_START

bitsandbytes = pytest.importorskip("bitsandbytes")

RANK, ALPHA = 4, 8
FOUR_BITS = {"quant_method": "bnb", "quant_bits": 4}


@pytest.fixture(scope="module")
def wide(world, tmp_path_factory):
    """A base that bitsandbytes can run on a CPU: its width is a multiple of the block size, 64."""
    texts = [message["content"] for row in read_rows(world.scenes) for message in row["messages"]]
    size = TinyLmmSize(hidden=64, layers=2, heads=2, vision_hidden=32, vision_layers=1, vision_heads=2)
    return build_tiny_internvl(tmp_path_factory.mktemp("wide"), texts, size)


@pytest.fixture(scope="module")
def adapter(wide, world, tmp_path_factory):
    """An adapter after a few steps of stage 2 with a 4-bit base."""
    folder = tmp_path_factory.mktemp("qlora")
    sft(
        model=wide,
        mask_tokenizer=world.mask_tokenizer,
        dataset=world.scenes,
        output_dir=folder,
        tuner_type="lora",
        lora_rank=RANK,
        lora_alpha=ALPHA,
        target_modules="all-linear",
        learning_rate=2e-2,
        max_steps=4,
        save_strategy="steps",
        save_steps=4,
        torch_dtype="bfloat16",
        bf16=True,
        use_cpu=True,
        **FOUR_BITS,
        **LMM,
        **STAGE_TWO,
    )
    return folder / "checkpoint-4"


@pytest.fixture
def answers(world, tmp_path):
    rows = write_rows(tmp_path / "asked.jsonl", [world.segment(m) for m in (world.left, world.right)])

    def run(name, **options):
        return infer(rows, tmp_path / f"{name}.jsonl", max_new_tokens=12, response_prefix=MASK_START, **options)

    return run


@pytest.fixture
def engines(monkeypatch):
    """The models of this test's engines."""
    from swift.infer_engine import TransformersEngine

    found = []
    init = TransformersEngine.__init__

    def noting(self, *args, **kwargs):
        init(self, *args, **kwargs)
        found.append(self.model)

    monkeypatch.setattr(TransformersEngine, "__init__", noting)
    return found


def in_four_bits(model):
    return [name for name, module in model.named_modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]


def complete(rows):
    return all(row["masks"] and all(mask["complete"] for mask in row["masks"]) for row in rows)


def test_adapter_infers_on_its_base_in_four_bits(adapter, answers, engines):
    rows = answers("adapted", adapters=adapter)
    assert complete(rows), [row["response"] for row in rows]
    (model,) = engines
    assert any("language_model" in name for name in in_four_bits(model))
    assert not any("mask_tokenizer" in name for name in in_four_bits(model))


def test_adapter_merges_into_the_unquantized_base(adapter, answers, engines, wide, tmp_path):
    merged = tmp_path / "merged"
    export(adapters=adapter, merge_lora=True, output_dir=merged, torch_dtype="float32")
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    model, report = AutoModelForImageTextToText.from_pretrained(merged, output_loading_info=True)
    assert not any(report.values()), report
    base, saved = (
        AutoModelForImageTextToText.from_pretrained(wide),
        load_file(adapter / "adapter_model.safetensors"),
    )
    name = "model.language_model.layers.0.self_attn.q_proj"
    a, b = (saved[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
    expected = base.get_submodule(name).weight + ALPHA / RANK * b @ a
    assert torch.allclose(model.get_submodule(name).weight, expected, atol=1e-6)
    ids = MaskVocabulary.of(AutoProcessor.from_pretrained(merged).tokenizer, 12).ids()
    (rows,) = (value for key, value in saved.items() if "trainable_tokens_delta" in key)
    assert torch.equal(model.get_input_embeddings().weight[ids], rows)
    ours, theirs = (MaskTokenizer.from_pretrained(folder).state_dict() for folder in (merged, adapter))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert complete(answers("merged", model=merged, torch_dtype="float32"))
    assert not in_four_bits(engines[0])


def test_merged_adapter_is_quantized_if_requested(adapter, answers, engines, tmp_path):
    export(adapters=adapter, merge_lora=True, output_dir=tmp_path / "four", **FOUR_BITS)
    assert "quantization_config" in json.loads((tmp_path / "four" / "config.json").read_text())
    ours, theirs = (MaskTokenizer.from_pretrained(folder).state_dict() for folder in (tmp_path / "four", adapter))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    assert not any("mask_tokenizer" in name for name in load_file(tmp_path / "four" / "model.safetensors"))
    assert complete(answers("four", model=tmp_path / "four"))
    assert in_four_bits(engines[0])


def test_model_exported_in_four_bits_has_its_mask_tokenizer(adapter, answers, engines, tmp_path):
    export(adapters=adapter, merge_lora=True, output_dir=tmp_path / "merged")
    export(model=tmp_path / "merged", output_dir=tmp_path / "four", **FOUR_BITS)
    assert complete(answers("four", model=tmp_path / "four")) and in_four_bits(engines[0])
