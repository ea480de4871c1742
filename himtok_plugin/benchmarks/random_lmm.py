"""InternVL models of released sizes with random weights, which need no download.

A tiny LMM for training is in `lmm/tiny_internvl.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedConfig

from himtok_plugin.lmm.tiny_internvl import PIXEL_SHUFFLE

QWEN3 = {"model_type": "qwen3", "head_dim": 128, "num_hidden_layers": 28, "num_attention_heads": 16}
QWEN3 |= {"num_key_value_heads": 8, "vocab_size": 151_936}
INTERNVIT_300M = {"attention_bias": True}  # everything else by default of transformers' configuration
SMALL = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
SMALL_TEXT = {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 2048}
# Language model and vision tower: 1 B and 2 B parameters as in InternVL3.5, and a tiny one for tests.
LMMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": ({**QWEN3, **SMALL, **SMALL_TEXT}, {**SMALL, "image_size": 32, "patch_size": 8}),
    "1b": ({**QWEN3, "hidden_size": 1024, "intermediate_size": 3072}, INTERNVIT_300M),
    "2b": ({**QWEN3, "hidden_size": 2048, "intermediate_size": 6144}, INTERNVIT_300M),
}


def lmm_config(name: str) -> InternVLConfig:
    """The configuration of an LMM in `LMMS`."""
    text, vision = LMMS[name]
    return InternVLConfig(text_config=dict(text), vision_config=dict(vision), tie_word_embeddings=True)


def count_image_tokens(config: InternVLConfig) -> int:
    """Number of image tokens per tile."""
    vision = config.vision_config
    assert isinstance(vision, PreTrainedConfig)  # made by `lmm_config`
    return (vision.image_size[0] // vision.patch_size[0] // PIXEL_SHUFFLE) ** 2


def count_parameters(config: InternVLConfig) -> int:
    """Number of parameters of the LMM, without allocating them."""
    with torch.device("meta"):
        return InternVLForConditionalGeneration(config).num_parameters()


def build_random_lmm(
    config: InternVLConfig, dtype: torch.dtype, device: torch.device
) -> InternVLForConditionalGeneration:
    """Build the LMM in training mode, its weights drawn on the device."""
    with device:
        return InternVLForConditionalGeneration._from_config(config, dtype=dtype).train()
