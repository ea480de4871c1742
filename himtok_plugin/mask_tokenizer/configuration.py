"""The configuration of the mask tokenizer, flat, typed and validated.

Defaults are those of the released weights (`large`), except `latent_layout`, which is causal in tokenizers trained with
this package.
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PretrainedConfig

from .box.box_codes import COORDINATES, count_bits

CODE_SCHEMES = ("square", "box")
BOX_FIELDS = {"box_tokens", "canvas_size", "shape_hidden_width"}  # that only this code scheme uses
SQUARE_FIELDS = {
    *{f"{part}_{field}" for part in ("encoder", "decoder") for field in ("width", "layers", "heads")},
    *("patch_size", "mlp_ratio", "latent_layout", "normalize_codebook", "output_channels"),
    *{f"pixel_{field}" for field in ("hidden_width", "input_channels", "channels", "channel_multipliers")},
    *("pixel_res_blocks", "pixel_groups"),
}
LATENT_LAYOUTS = ("transpose", "legacy_reshape")
GROUP_NORM_GROUPS = 32  # of the MaskGIT-VQGAN pixel decoder; channels must be a multiple of it


class MaskTokenizerConfig(PretrainedConfig):
    """Configuration of a `MaskTokenizer` (arXiv 2503.13026, section 3.1).

    Args:
        code_scheme: what codes describe. `square`: the whole square, all codes are predicted at once (TiTok); `box`:
            the first codes are the object's bounding box, the others its shape in this box, and each code refines the
            sum of those before it.
        image_size: side of the square s in pixels.
        patch_size: side of an encoder patch in pixels; equals the upsampling of the pixel decoder, 2 ** (levels - 1).
        encoder_width, encoder_layers, encoder_heads: the encoder's transformer.
        decoder_width, decoder_layers, decoder_heads: the de-tokenizer's transformer.
        mlp_ratio: hidden width of a block's feed-forward layer, in multiples of the width.
        num_mask_tokens: k, the number of codes per mask.
        codebook_size: v, the number of codes.
        code_width: d, the width of a code vector; with the scheme `box`, 4 of its values are those of the box.
        box_tokens, canvas_size, shape_hidden_width: of the scheme `box`, which does without all fields of transformers
            and of the pixel decoder: codes that describe the box, side of the canvas on which the shape is seen, and
            hidden width of encoder and decoder.
        latent_layout: how (k, width) latents become (width, k) before the 1x1 convolution. `transpose` keeps codes
            causal; `legacy_reshape` mixes tokens, as in the released weights and in TiTok.
        normalize_codebook: decode L2-normalised code vectors; the released decoder takes them unnormalised.
        pixel_hidden_width, pixel_input_channels: the two 1x1 convolutions between transformer and pixel decoder.
        pixel_channels, pixel_channel_multipliers, pixel_res_blocks, pixel_groups: the pixel decoder; multipliers
            run from the last (full resolution) level to the first.
        output_channels: channels of the last convolution, which are averaged.
        output_shift, output_scale: probability = sigmoid((mean - shift) * scale).
        codebook_ready: False until training has initialized the codebook from the encoder's outputs.
        initializer_range: minimum standard deviation of newly initialized weights.

    Raises:
        ValueError: a field is out of range, or two fields are inconsistent.
    """

    model_type = "himtok_mask_tokenizer"

    def __init__(
        self,
        image_size: int = 256,
        patch_size: int = 16,
        encoder_width: int = 1024,
        encoder_layers: int = 24,
        encoder_heads: int = 16,
        decoder_width: int = 1024,
        decoder_layers: int = 24,
        decoder_heads: int = 16,
        mlp_ratio: int = 4,
        num_mask_tokens: int = 32,
        codebook_size: int = 1024,
        code_width: int = 12,
        latent_layout: str = "transpose",
        normalize_codebook: bool = False,
        pixel_hidden_width: int | None = None,
        pixel_input_channels: int = 1024,
        pixel_channels: int = 128,
        pixel_channel_multipliers: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4),
        pixel_res_blocks: int = 2,
        pixel_groups: int = GROUP_NORM_GROUPS,
        output_channels: int = 3,
        output_shift: float = 0.5,
        output_scale: float = 5.0,
        codebook_ready: bool = False,
        initializer_range: float = 0.02,
        code_scheme: str = "square",
        box_tokens: int = 3,
        canvas_size: int = 48,
        shape_hidden_width: int = 512,
        **kwargs,
    ):
        self.code_scheme = code_scheme
        self.image_size = image_size
        self.patch_size = patch_size
        self.encoder_width = encoder_width
        self.encoder_layers = encoder_layers
        self.encoder_heads = encoder_heads
        self.decoder_width = decoder_width
        self.decoder_layers = decoder_layers
        self.decoder_heads = decoder_heads
        self.mlp_ratio = mlp_ratio
        self.num_mask_tokens = num_mask_tokens
        self.codebook_size = codebook_size
        self.code_width = code_width
        self.box_tokens = box_tokens
        self.canvas_size = canvas_size
        self.shape_hidden_width = shape_hidden_width
        self.latent_layout = latent_layout
        self.normalize_codebook = normalize_codebook
        if pixel_hidden_width is None:
            pixel_hidden_width = 2 * decoder_width if _is_positive_integer(decoder_width) else 0
        self.pixel_hidden_width = pixel_hidden_width
        self.pixel_input_channels = pixel_input_channels
        self.pixel_channels = pixel_channels
        self.pixel_channel_multipliers = pixel_channel_multipliers
        self.pixel_res_blocks = pixel_res_blocks
        self.pixel_groups = pixel_groups
        self.output_channels = output_channels
        self.output_shift = output_shift
        self.output_scale = output_scale
        self.codebook_ready = codebook_ready
        self.initializer_range = initializer_range
        self.check()
        super().__init__(**kwargs)

    @property
    def grid_size(self) -> int:
        """Number of patches along one side of the square."""
        return self.image_size // self.patch_size

    @property
    def has_blurred_prefixes(self) -> bool:
        """Whether prefixes stand for blurred masks, as in the paper; in the scheme "box" they are sharp but coarse."""
        return self.code_scheme == "square"

    @classmethod
    def field_names(cls) -> set[str]:
        """Names of the fields of this class, without those of `PretrainedConfig`."""
        return set(inspect.signature(cls).parameters) - {"kwargs"}

    def to_dict(self) -> dict[str, Any]:
        """All fields except those that the code scheme does not use."""
        unused = BOX_FIELDS if self.code_scheme == "square" else SQUARE_FIELDS
        return {name: value for name, value in super().to_dict().items() if name not in unused}

    def check(self) -> None:
        """Check all fields, which may have been set after construction; raises the ValueError of the class."""
        positive = (
            "image_size patch_size encoder_width encoder_layers encoder_heads decoder_width decoder_layers "
            "decoder_heads mlp_ratio num_mask_tokens codebook_size code_width pixel_hidden_width "
            "pixel_input_channels pixel_channels pixel_res_blocks pixel_groups output_channels box_tokens canvas_size "
            "shape_hidden_width"
        ).split()
        for name in positive:
            value = getattr(self, name)
            if not _is_positive_integer(value):
                raise ValueError(f"{name}={value!r}: expected a positive integer")
        for name in ("output_shift", "output_scale", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: expected a number")
        for name in ("normalize_codebook", "codebook_ready"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected true or false")
        multipliers = self.pixel_channel_multipliers
        if not isinstance(multipliers, (list, tuple)) or not all(map(_is_positive_integer, multipliers)):
            raise ValueError(f"pixel_channel_multipliers={multipliers!r}: expected a list of positive integers")
        self.pixel_channel_multipliers = list(multipliers)
        if self.code_scheme not in CODE_SCHEMES:
            raise ValueError(f"code_scheme={self.code_scheme!r}: expected one of {CODE_SCHEMES}")
        if self.code_scheme == "box":
            self._check_box_scheme()
        else:
            self._check_square_scheme()

    def _check_box_scheme(self) -> None:
        count_bits(self.codebook_size)
        if self.box_tokens >= self.num_mask_tokens:
            raise ValueError(f"box_tokens={self.box_tokens}: expected less than num_mask_tokens={self.num_mask_tokens}")
        if self.code_width <= COORDINATES:
            raise ValueError(f"code_width={self.code_width}: expected more than {COORDINATES}, the values of the box")

    def _check_square_scheme(self) -> None:
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size}: expected a multiple of patch_size={self.patch_size}")
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            if width % heads:
                raise ValueError(f"{part}_width={width}: expected a multiple of {part}_heads={heads}")
        if self.latent_layout not in LATENT_LAYOUTS:
            raise ValueError(f"latent_layout={self.latent_layout!r}: expected one of {LATENT_LAYOUTS}")
        upsampling = 2 ** (len(self.pixel_channel_multipliers) - 1)
        if upsampling != self.patch_size:
            raise ValueError(
                f"pixel_channel_multipliers={self.pixel_channel_multipliers}: {len(self.pixel_channel_multipliers)} "
                f"levels upsample {upsampling} times, expected patch_size={self.patch_size} times"
            )
        for multiplier in self.pixel_channel_multipliers:
            if (self.pixel_channels * multiplier) % self.pixel_groups:
                raise ValueError(
                    f"pixel_channels={self.pixel_channels}: expected {multiplier} times it to be a multiple of "
                    f"pixel_groups={self.pixel_groups}"
                )


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
