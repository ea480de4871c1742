"""Every base model needs another `--model` and nothing else; unsupported ones are refused.

docs/base_models.md lists the families, and what each of them needs.
"""

import importlib.util
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import LMM, STAGE_TWO, infer, logged, read_rows, sft, write_rows
from safetensors import safe_open
from tiny_bases import BASES, build_gemma3
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Gemma3ForConditionalGeneration,
    InternVLForConditionalGeneration,
)

from himtok_plugin import MaskTokenizer
from himtok_plugin.mask_text import MASK_START, mask_tokens, text_to_codes
from himtok_plugin.masks import load_mask

STEPS = 3
TERMS = ("loss", "loss_next_token", "loss_mask_bce", "loss_mask_dice", "loss_mask_hierarchical")
needs_qwen = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("qwen_vl_utils", "decord")),
    reason="ms-swift asks for qwen_vl_utils and decord",
)
# Further families: those that remain are the ones that most people train, and one whose images enter elsewhere.
SLOW = {"llava-1.5-7b-hf", "gemma-3-4b-it", "Mistral-Small-3.1-24B-Instruct-2503", "GLM-4.1V-9B-Base"}


def marks_of(name):
    return [*([needs_qwen] if name.startswith("Qwen") else []), *([pytest.mark.slow] if name in SLOW else [])]


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in BASES])
def test_base_trains_reloads_and_segments(name, world, tmp_path):
    base = BASES[name](tmp_path / name)
    rows = [world.segment(world.left), world.row("<image>All.", "<mask> <mask>", masks=[world.left, world.right])]
    result = sft(
        model=base,
        mask_tokenizer=world.mask_tokenizer,
        dataset=write_rows(tmp_path / "rows.jsonl", rows),
        output_dir=tmp_path / "out",
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=STEPS,
        **LMM,
        **STAGE_TWO,
    )
    checkpoint = tmp_path / "out" / f"checkpoint-{STEPS}"
    assert_losses_are_logged_and_fall(result)
    assert_checkpoint_is_vanilla_with_mask_tokens(base, checkpoint)
    assert_infers_masks(checkpoint, world, tmp_path)


def assert_losses_are_logged_and_fall(result):
    for term in TERMS:
        values = logged(result, term)
        assert len(values) == STEPS and all(map(math.isfinite, values)), (term, values)
    losses = logged(result, "loss")
    assert losses[-1] < losses[0]


def assert_checkpoint_is_vanilla_with_mask_tokens(base, checkpoint):
    codebook_size = MaskTokenizer.from_pretrained(checkpoint / "mask_tokenizer").config.codebook_size
    before, after = AutoTokenizer.from_pretrained(base).get_vocab(), AutoProcessor.from_pretrained(checkpoint).tokenizer
    added = {token: i for token, i in after.get_vocab().items() if token not in before}
    assert set(added) == set(mask_tokens(codebook_size))
    ids = sorted(added.values())
    assert ids == list(range(max(before.values()) + 1, max(before.values()) + 1 + codebook_size + 2))

    model, report = AutoModelForImageTextToText.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(report.values()), report
    inputs, outputs = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for matrix in (inputs, outputs):
        assert ids[-1] < len(matrix)
        assert len(matrix[ids].unique(dim=0)) == len(ids)  # none at zero like the rows to spare, none like another
    names = list_weights(checkpoint)
    assert names == list_weights(base)
    tied = not any(name.endswith("lm_head.weight") for name in names)
    assert (outputs is inputs) == tied


def list_weights(folder) -> set[str]:
    """Names in the files; tied matrices are stored once."""
    return {name for file in folder.glob("*.safetensors") for name in safe_open(file, "pt").keys()}


def assert_infers_masks(checkpoint, world, tmp_path):
    """Untrained models open no mask by themselves."""
    asked = [world.row(f"<image>Is it {MASK_START}", "It is <mask>.", masks=[world.left])]
    rows, result = write_rows(tmp_path / "asked.jsonl", asked), tmp_path / "result.jsonl"
    (row,) = infer(rows, result, model=checkpoint, max_new_tokens=8, response_prefix=MASK_START)
    (mask,), (span,) = row["masks"], text_to_codes(row["response"])
    assert mask["size"] == [48, 64] and load_mask(mask).shape == (48, 64)
    assert mask["complete"] and mask["codes"] == span.codes and span.complete
    assert np.array_equal(load_mask(row["target_masks"][0]), world.left)
    assert read_rows(result) == [row]


def test_image_tokens_of_gemma3_are_marked_as_transformers_marks_them(train, world, tmp_path, monkeypatch):
    base = build_gemma3(tmp_path / "gemma-3-4b-it")
    forward, batches = Gemma3ForConditionalGeneration.forward, []

    def recorded(self, **kwargs):
        batches.append((kwargs["input_ids"][0].tolist(), kwargs["token_type_ids"][0].tolist()))
        return forward(self, **kwargs)

    monkeypatch.setattr(Gemma3ForConditionalGeneration, "forward", recorded)
    train([world.segment(world.left)], model=base)
    processor = AutoProcessor.from_pretrained(base)
    expected = processor(text="<start_of_image>", images=[[Image.open(world.image)]])
    batches.append((expected["input_ids"][0], expected["token_type_ids"][0]))
    for input_ids, types in batches:
        marked = [token for token, kind in zip(input_ids, types, strict=True) if kind]
        assert marked == [processor.tokenizer.image_token_id] * 4


# ----- bases that cannot work


@pytest.mark.parametrize("template", ["florence", "diffusion_gemma"])
def test_bases_that_are_not_decoder_only_are_refused(template):
    from swift.template import get_template_meta

    base = SimpleNamespace(is_multimodal=True, template=template, model_type=template, candidate_templates=[template])
    with pytest.raises(ValueError, match="expected a decoder-only one"):
        get_template_meta(None, base, template)


def test_base_without_input_ids_is_refused(train, world, monkeypatch):
    from swift.template.templates.internvl import InternvlhfTemplate

    encode = InternvlhfTemplate._encode

    def embed(self, inputs):
        encoded = encode(self, inputs)
        length = len(encoded.pop("input_ids"))
        return {**encoded, "inputs_embeds": torch.zeros(length, 32), "input_ids": None}

    monkeypatch.setattr(InternvlhfTemplate, "_encode", embed)
    with pytest.raises(ValueError, match="'internvl_hf': got .* without input_ids"):
        train([world.segment(world.left)])


def test_mask_loss_is_refused_for_a_base_that_puts_images_between_the_ids(train, world, monkeypatch):
    forward = InternVLForConditionalGeneration.forward

    def lengthened(self, **kwargs):
        outputs = forward(self, **kwargs)
        outputs.logits = torch.nn.functional.pad(outputs.logits, (0, 0, 5, 0))
        return outputs

    monkeypatch.setattr(InternVLForConditionalGeneration, "forward", lengthened)
    with pytest.raises(ValueError, match="can be trained without a mask loss only"):
        train([world.segment(world.left)], **STAGE_TWO)
