"""LMMs of real sizes with random weights: they cost what trained ones cost, and need no download.

Contract: an InternVL of transformers' own class, whose sizes are those of a released one. Does not know mask tokens,
text and files; a tiny LMM that can be trained and saved is `tiny_lmm.py`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

from himtok_plugin.lmm.tiny_internvl import PIXEL_SHUFFLE

QWEN3 = {"model_type": "qwen3", "head_dim": 128, "num_hidden_layers": 28, "num_attention_heads": 16}
QWEN3 |= {"num_key_value_heads": 8, "vocab_size": 151_936}
INTERNVIT_300M = {"attention_bias": True}  # and the defaults of transformers' configuration
SMALL = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64}
SMALL_TEXT = {"num_key_value_heads": 2, "head_dim": 16, "vocab_size": 2048}
# Language model and vision tower, of 1 B and 2 B parameters as InternVL3.5 has them, and one for tests.
LMMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tiny": ({**QWEN3, **SMALL, **SMALL_TEXT}, {**SMALL, "image_size": 32, "patch_size": 8}),
    "1b": ({**QWEN3, "hidden_size": 1024, "intermediate_size": 3072}, INTERNVIT_300M),
    "2b": ({**QWEN3, "hidden_size": 2048, "intermediate_size": 6144}, INTERNVIT_300M),
}


def lmm_config(name: str) -> InternVLConfig:
    """The configuration of an LMM in `LMMS`."""
    text, vision = LMMS[name]
    return InternVLConfig(text_config=dict(text), vision_config=dict(vision), tie_word_embeddings=True)


def image_tokens(config: InternVLConfig) -> int:
    """Tokens that one tile takes."""
    vision = config.vision_config
    return (vision.image_size[0] // vision.patch_size[0] // PIXEL_SHUFFLE) ** 2


def number_of_parameters(config: InternVLConfig) -> int:
    """Of the LMM, without building it."""
    with torch.device("meta"):
        return InternVLForConditionalGeneration(config).num_parameters()


def build_random_lmm(
    config: InternVLConfig, dtype: torch.dtype, device: torch.device
) -> InternVLForConditionalGeneration:
    """The LMM in training mode, its weights drawn where they are to be."""
    with device:
        return InternVLForConditionalGeneration._from_config(config, dtype=dtype).train()
