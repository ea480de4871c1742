"""Named sizes of the mask tokenizer, and a builder for them.

`large` is the size of the released `himtok.pth`; `small` and `base` have TiTok's transformers with the same codebook
and pixel decoder; `tiny` trains on a CPU in minutes; `pocket`, that of the shipped LMM, was trained on a GPU; `box` is
the default mask tokenizer, for masks of real objects.
Torch is imported only when a mask tokenizer is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .modeling import MaskTokenizer


def _titok(width: int, layers: int) -> dict:
    """Fields of TiTok's transformers, whose heads are 64 wide (arXiv 2406.07550, table 1)."""
    return {
        f"{part}_{field}": value
        for part in ("encoder", "decoder")
        for field, value in (("width", width), ("layers", layers), ("heads", width // 64))
    }


SIZES: dict[str, dict] = {
    "tiny": {
        **_titok(width=128, layers=2),
        "image_size": 32,
        "patch_size": 8,
        "num_mask_tokens": 8,
        "codebook_size": 256,
        "code_width": 6,
        "pixel_hidden_width": 128,
        "pixel_input_channels": 64,
        "pixel_channels": 16,
        "pixel_channel_multipliers": [1, 1, 2, 4],
        "pixel_res_blocks": 1,  # a second block takes a third of the training step and does not improve reconstruction
        "pixel_groups": 1,
    },
    "pocket": {
        "encoder_width": 128,
        "encoder_layers": 4,
        "encoder_heads": 2,
        "decoder_width": 128,
        "decoder_layers": 6,
        "decoder_heads": 2,
        "image_size": 128,
        "patch_size": 16,
        "num_mask_tokens": 16,
        "codebook_size": 1024,
        "code_width": 8,
        "pixel_hidden_width": 128,
        "pixel_input_channels": 64,
        "pixel_channels": 16,
        "pixel_channel_multipliers": [1, 1, 2, 4, 4],
        "pixel_res_blocks": 1,
        "pixel_groups": 1,
    },
    "box": {
        "code_scheme": "box",
        "image_size": 256,
        "num_mask_tokens": 16,
        "codebook_size": 1024,
        "code_width": 68,
        "box_tokens": 3,
        "canvas_size": 48,
        "shape_hidden_width": 512,
        "output_scale": 12.0,
    },
    "small": _titok(width=512, layers=8),
    "base": _titok(width=768, layers=12),
    "large": _titok(width=1024, layers=24),
}


def build_mask_tokenizer(size: str, **overrides: Any) -> MaskTokenizer:
    """Build an untrained mask tokenizer of a named size.

    Args:
        size: a key of `SIZES`.
        overrides: fields of `MaskTokenizerConfig` to change.

    Raises:
        ValueError: the size is unknown, or an override is not a field or out of range.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r}: expected one of {sorted(SIZES)}")
    from .configuration import MaskTokenizerConfig
    from .modeling import MaskTokenizer

    for name in overrides:
        if name not in MaskTokenizerConfig.field_names():
            raise ValueError(f"{name}={overrides[name]!r}: expected a field of MaskTokenizerConfig")
    return MaskTokenizer(MaskTokenizerConfig(**{**SIZES[size], **overrides}))
