"""Tiny mask tokenizers and squares that tests share."""

import numpy as np
import torch

from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig

FIELDS = {
    "image_size": 16,
    "patch_size": 4,
    "encoder_width": 16,
    "encoder_layers": 2,
    "encoder_heads": 2,
    "decoder_width": 16,
    "decoder_layers": 2,
    "decoder_heads": 2,
    "num_mask_tokens": 4,
    "codebook_size": 12,
    "code_width": 3,
    "pixel_input_channels": 16,
    "pixel_channels": 8,
    "pixel_channel_multipliers": [1, 1, 2],
    "pixel_res_blocks": 1,
    "pixel_groups": 4,
    "output_channels": 2,
}


def tiny_config(**fields):
    return MaskTokenizerConfig(**{**FIELDS, **fields})


def tiny_model(seed=0, **fields):
    torch.manual_seed(seed)
    return MaskTokenizer(tiny_config(**fields)).eval()


def random_squares(count, side=16, seed=0):
    """(count, side, side) of random rectangles, float32."""
    rng = np.random.default_rng(seed)
    squares = np.zeros((count, side, side), dtype=np.float32)
    for square in squares:
        (top, bottom), (left, right) = np.sort(rng.choice(side + 1, (2, 2), replace=False), axis=1)
        square[top:bottom, left:right] = 1
    return torch.from_numpy(squares)


def released_state(model):
    """State dict with the keys of a released file."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    length = 1 + model.config.grid_size**2 + model.config.num_mask_tokens
    return {**state, "encoder.attn_mask": torch.zeros(length, length, dtype=torch.bool)}
