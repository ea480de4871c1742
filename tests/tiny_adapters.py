"""Tiny base models and LoRA adapters with trained token embeddings, made with PEFT alone."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import tiny_model
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl
from himtok_plugin.lmm.vocabulary import MaskVocabulary, extend_embeddings, extend_tokenizer

CODES = 12  # of `tiny_model`
TEXTS = ("Segment the red circle.", "The mask appears at the left.")
EMBEDDINGS = {True: ["model.language_model.embed_tokens"], False: ["model.language_model.embed_tokens", "lm_head"]}


@dataclass(frozen=True)
class TinyAdapter:
    """Folders of an adapter and its base model, and the logits that both have.

    Attributes:
        base, folder: the folders.
        ids: of the mask tokens.
        inputs: (1, length) int64, with mask tokens.
        logits: (1, length, tokens) of the text tokenizer's tokens.
    """

    base: Path
    folder: Path
    ids: list[int]
    inputs: torch.Tensor
    logits: torch.Tensor


def build_adapter(
    root: Path, tied: bool = True, has_mask_tokens: bool = True, shard_size: str = "5GB", dtype=torch.float32, **options
) -> TinyAdapter:
    """Write a base model and an adapter with random LoRA weights and random embeddings of the mask tokens.

    Args:
        root: folder for both.
        tied: whether input and output embeddings are one.
        has_mask_tokens: whether the base model has mask tokens. Otherwise they were added when it was loaded.
        shard_size: maximum size of a weights file.
        dtype: of the base model.
        options: further fields of PEFT's LoraConfig.
    """
    base, folder = root / "base_model", root / "adapter"
    build_tiny_internvl(base, TEXTS, "nano")
    processor = AutoProcessor.from_pretrained(base)
    model = AutoModelForImageTextToText.from_pretrained(base).to(dtype)
    if not tied:
        for config in (model.config, model.config.text_config):
            config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.01)

    def add_mask_tokens() -> None:
        added = extend_tokenizer(processor.tokenizer, CODES)
        model.config.text_config.vocab_size = extend_embeddings(model, added, len(processor.tokenizer))

    def save() -> None:
        model.save_pretrained(base, max_shard_size=shard_size)
        processor.save_pretrained(base)

    if has_mask_tokens:
        add_mask_tokens()
    for file in base.glob("*.safetensors"):
        file.unlink()
    save()
    if not has_mask_tokens:
        add_mask_tokens()
    ids = MaskVocabulary.of(processor.tokenizer, CODES).ids()
    set_seed(0)
    trained = {"target_modules": r".*language_model.*(q_proj|down_proj)", **options}
    config = LoraConfig(
        r=4, trainable_token_indices=dict.fromkeys(EMBEDDINGS[tied], ids), task_type="CAUSAL_LM", **trained
    )
    config.base_model_name_or_path = str(base)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "trainable_tokens_delta" in name:
            parameter.data.normal_(0, 0.5)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    tiny_model().save_pretrained(folder / "mask_tokenizer")
    (folder / "args.json").write_text(json.dumps({"model": str(base), "tuner_type": "lora"}))
    (folder / "additional_config.json").write_text("{}")
    inputs = torch.tensor([[5, *ids[:4], 9, 300, ids[-1]]])
    return TinyAdapter(base, folder, ids, inputs, compute_logits(adapted, inputs, len(processor.tokenizer)))


@torch.no_grad()
def compute_logits(model, inputs: torch.Tensor, num_tokens: int) -> torch.Tensor:
    return model.eval()(input_ids=inputs).logits[..., :num_tokens]


def load_adapted(base: Path, adapter: Path) -> PeftModel:
    """Load a base model with an adapter, with transformers and PEFT alone."""
    model, report = AutoModelForImageTextToText.from_pretrained(base, output_loading_info=True)
    assert not any(report.values()), report
    return PeftModel.from_pretrained(model, adapter)
