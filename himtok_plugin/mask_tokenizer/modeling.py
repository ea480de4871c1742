"""`MaskTokenizer`: encoder, quantizer and de-tokenizer as a transformers model.

Contract: `encode` maps squares (b, s, s) in [0, 1] to codes (b, k), and `decode` maps codes back.

Shapes: b batch, k mask tokens, n <= k mask tokens of a prefix, d code width, v codebook size, s side of the square.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from himtok_plugin.checkpoints.model_folder import check_model_folder

from .box.coders import BoxFrameDecoder, BoxFrameEncoder, CanvasPlacement, ZeroLinear
from .box.residual_quantizer import ResidualQuantizer
from .code_search import SearchedDecoder, check_candidates, search_codes
from .configuration import MaskTokenizerConfig
from .decoder import MaskDecoder
from .encoder import MaskEncoder
from .pixel_decoder import PixelDecoder
from .quantizer import Quantizer
from .released_weights import (
    ReleasedOptions,
    check_keys,
    find_mask_tokenizer,
    read_released,
    shapes_of,
)
from .transformer import SelfAttention

SHAPE_CODEBOOKS = "quantize.shape_codebooks.weight"
RANGE_TOLERANCE = 1e-3  # by which rounded values, also of half precision, may exceed [0, 1]


class MaskTokenizer(PreTrainedModel):
    """Hierarchical mask tokenizer of HiMTok (arXiv 2503.13026, section 3.1), based on TiTok (arXiv 2406.07550)."""

    config_class = MaskTokenizerConfig
    config: MaskTokenizerConfig
    base_model_prefix = ""
    main_input_name = "squares"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block", "Level"]
    _keep_in_fp32_modules_strict = ["quantize"]

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__(config)
        if config.code_scheme == "square":
            self.latent_tokens = nn.Parameter(torch.empty(config.num_mask_tokens, config.encoder_width))
        self.encoder = MaskEncoder(config) if config.code_scheme == "square" else BoxFrameEncoder(config)
        self.build_detokenizer()
        self.post_init()

    def build_detokenizer(self) -> None:
        """Add the modules that decode: `quantize`, `decoder` and `pixel_decoder`."""
        config, is_square = self.config, self.config.code_scheme == "square"
        self.quantize = build_quantizer(config)
        self.decoder = MaskDecoder(config) if is_square else BoxFrameDecoder(config)
        self.pixel_decoder = PixelDecoder(config) if is_square else CanvasPlacement(config)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # There are no experts. transformers 5.2 finds that out in the source file, which it cannot open in a zip file.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # The functions in transformers' `initialization` skip weights that are already loaded.
        from transformers import initialization as init

        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in_init = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
            if isinstance(self.quantize, Quantizer) and module is self.quantize.embedding_proj:
                init.eye_(module.weight)
            elif isinstance(module, ZeroLinear):
                init.zeros_(module.weight)
            elif fan_in_init:
                init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                init.trunc_normal_(module.weight, std=max(std, module.weight[0].numel() ** -0.5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SelfAttention):
            init.trunc_normal_(module.in_proj_weight, std=max(std, module.in_proj_weight.shape[1] ** -0.5))
            init.zeros_(module.in_proj_bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        own = ("class_embedding", "mask_token", "positional_embedding", "latent_token_positional_embedding")
        for name in (*own, "latent_tokens"):
            parameter = module._parameters.get(name)
            if parameter is not None:
                init.normal_(parameter, std=parameter.shape[-1] ** -0.5)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args: Any, **kwargs: Any
    ) -> MaskTokenizer:
        """Load a mask tokenizer.

        Args:
            pretrained_model_name_or_path: a `save_pretrained` folder or hub id; a folder, file or hub id of released
                weights (`himtok.pth`), which are converted while loading; or "default".
            kwargs: as for any transformers model, including fields of the configuration. For released weights:
                configuration fields, `dtype`, `device_map` and hub options.

        Raises:
            ValueError: no mask tokenizer was found, weights or fields do not match, or a keyword is not supported for
                released weights.
        """
        if pretrained_model_name_or_path is None:
            raise ValueError("pretrained_model_name_or_path: got None, expected a folder, file, hub id or 'default'")
        found = find_mask_tokenizer(pretrained_model_name_or_path, kwargs)
        kwargs.pop("subfolder", None)  # is part of the path found
        if found.is_file():
            released = ReleasedOptions.of(found, kwargs)
            model = cls.from_released(found, released.fields)
            cast("nn.Module", model).to(released.device, released.dtype)
            return model
        check_model_folder(found)
        # With mismatched sizes ignored, the report lists all of them; otherwise transformers raises without names.
        options = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            loaded, report = cast(
                "tuple[MaskTokenizer, dict]", super().from_pretrained(os.fspath(found), *args, **options)
            )
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"mask tokenizer {os.fspath(found)!r} cannot be read: {reason}") from error
        wrong = {name: sorted(keys, key=str) for name, keys in report.items() if keys}
        if wrong:
            raise ValueError(f"mask tokenizer {os.fspath(found)!r} does not fit: {wrong}")
        loaded.config.check()  # transformers sets fields from keywords without checking them
        return loaded

    @classmethod
    def from_released(cls, path: str | os.PathLike, fields: Mapping[str, Any] | None = None) -> MaskTokenizer:
        """Load a released weights file (`himtok.pth`) in float32, in evaluation mode.

        Args:
            path: the file.
            fields: configuration fields to use instead of those derived from the shapes.

        Raises:
            ValueError: it is not a file of tensors, or keys or shapes are not those of a mask tokenizer.
        """
        config, state = read_released(path, fields)
        cls.check_shapes(config, shapes_of(state), path)
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state, assign=True)
        return model.eval()

    @classmethod
    def check_shapes(cls, config: MaskTokenizerConfig, shapes: Mapping[str, tuple[int, ...]], source: object) -> None:
        """Compare the shapes of a state dict, by key, with those that the configuration requires.

        Raises:
            ValueError: they differ; the message begins with `source` and lists every key.
        """
        with torch.device("meta"):
            expected = shapes_of(cls(config).state_dict())
        check_keys(shapes, expected, source)

    def enable_input_require_grads(self) -> None:
        """Do nothing, because there are no input embeddings.

        transformers' method handles this, but ms-swift replaces it in processes that have loaded an InternVL.
        """

    def encode(self, squares: Tensor, candidates: int = 1, decodes: int | None = None) -> Tensor:
        """Encode squares to codes, without gradient.

        Args:
            squares: (b, s, s) float in [0, 1], see `masks.to_square`.
            candidates: 1 takes the code nearest to each latent, as in training. With 2 to v, codes are searched among
                this number of nearest codes at each position, which gives better masks (`code_search.search_codes`).
                With the code scheme "box", it is the number of beams of a search that decodes no masks.
            decodes: about how many masks this search decodes for each square, at least 1; more give closer masks.
                None: 4 k + 2 candidates.

        Returns:
            (b, k) int64 in [0, v).

        Raises:
            ValueError: not a tensor, wrong shape or dtype, or a number out of range. Values outside [0, 1] are
                detected on CPUs only, because reading them would make training steps wait for another device.
        """
        check_candidates(candidates, self.config.codebook_size)
        with torch.no_grad():
            latents = self.encode_to_latents(squares)
            if isinstance(self.quantize, ResidualQuantizer):
                return self.quantize.nearest_codes(latents, beams=candidates)
            if candidates == 1:
                return self.quantize.nearest_codes(latents)
            decoder = SearchedDecoder(self.quantize.code_vectors, self.decode_code_vectors)
            return search_codes(self.quantize.nearest_codes(latents, candidates), squares, decoder, decodes)

    def encode_to_latents(self, squares: Tensor) -> Tensor:
        """Encode squares to latents before quantization, with gradient.

        Returns:
            (b, k, d) in the model's dtype; with the code scheme "box" (b, d) float32.
        """
        _check_tensor("squares", squares)
        side = self.config.image_size
        if squares.ndim != 3 or squares.shape[1:] != (side, side):
            raise ValueError(f"squares of shape {tuple(squares.shape)}: expected (b, {side}, {side})")
        if not squares.is_floating_point():
            raise ValueError(f"squares of dtype {squares.dtype}: expected a float dtype with values in [0, 1]")
        _check_range("squares", squares)
        if isinstance(self.encoder, BoxFrameEncoder):
            return self.encoder(squares, self.quantize)[0]
        return self.encoder(squares.to(self.latent_tokens.dtype), self.latent_tokens)

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes to mask probabilities.

        Args:
            codes: (b, n) int64 in [0, v), 1 <= n <= k; a prefix decodes to a coarser mask.

        Returns:
            (b, s, s) float32 in [0, 1].

        Raises:
            ValueError: not a tensor, wrong shape or dtype, or a code out of range.
        """
        self._check_length("codes", codes, ndim=2)
        if codes.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"codes of dtype {codes.dtype}: expected int64")
        # Reading the values would break a compiled graph.
        if not torch.compiler.is_compiling() and codes.numel():
            low, high = codes.aminmax()
            if low < 0 or high >= self.config.codebook_size:
                raise ValueError(f"codes from {int(low)} to {int(high)}: expected 0 to {self.config.codebook_size - 1}")
        return self._decode_valid(codes)

    def _decode_valid(self, codes: Tensor) -> Tensor:
        return self.decode_code_vectors(self.quantize.code_vectors(codes))

    def decode_probabilities(self, probabilities: Tensor) -> Tensor:
        """Soft decoding: decode the expected code vector of each position.

        Args:
            probabilities: (b, n, v) float that sum to 1 over v, or are all zero at positions to be ignored. Leaving a
                position out is different: a zero code vector still gets the bias of the decoder's embedding.

        Returns:
            (b, s, s) float32 in [0, 1], differentiable.

        Raises:
            ValueError: not a tensor, or a wrong shape; on CPUs also values outside [0, 1], see `encode`.
        """
        self._check_length("probabilities", probabilities, ndim=3)
        if probabilities.shape[2] != self.config.codebook_size:
            raise ValueError(f"probabilities over {probabilities.shape[2]} codes: expected {self.config.codebook_size}")
        _check_range("probabilities", probabilities)
        return self.decode_code_vectors(self.quantize.expected_code_vectors(probabilities))

    def decode_code_vectors(self, code_vectors: Tensor) -> Tensor:
        """Decode code vectors (b, n, d) to mask probabilities (b, s, s), float32 in [0, 1]."""
        return self.to_probabilities(self.pixel_decoder(self.decoder(code_vectors)))

    def to_probabilities(self, values: Tensor) -> Tensor:
        """Map the decoder's output values to probabilities, float32 of the same shape."""
        return torch.sigmoid((values.float() - self.config.output_shift) * self.config.output_scale)

    def shorten(self, num_mask_tokens: int) -> MaskTokenizer:
        """Make a mask tokenizer of the first codes of this one, with copies of its weights; scheme "box" only.

        The codes of a mask are the first of those that this mask tokenizer gives, and decode to the same masks. With
        fewer codes an LMM writes shorter answers and leaves out details, which take the most training to learn.

        Args:
            num_mask_tokens: codes per mask, more than those of the box and at most as many as before.

        Raises:
            ValueError: the scheme is another, or the number is out of range.
        """
        config = self.config
        if config.code_scheme != "box":
            raise ValueError(f"code_scheme={config.code_scheme!r}: expected 'box', other schemes cannot be shortened")
        if not config.box_tokens < num_mask_tokens <= config.num_mask_tokens:
            limits = f"{config.box_tokens + 1} to {config.num_mask_tokens}"
            raise ValueError(f"num_mask_tokens={num_mask_tokens}: expected {limits}")
        fields = {name: getattr(config, name) for name in config.field_names()}
        shorter = MaskTokenizer(MaskTokenizerConfig(**{**fields, "num_mask_tokens": num_mask_tokens}))
        weights = self.state_dict()
        kept = (num_mask_tokens - config.box_tokens) * config.codebook_size
        weights[SHAPE_CODEBOOKS] = weights[SHAPE_CODEBOOKS][:kept]
        shorter.load_state_dict(weights)
        cast("nn.Module", shorter).to(self.device, self.dtype)
        return shorter.train(self.training)

    def forward(self, squares: Tensor, objective: Callable[..., Any] | None = None, **kwargs: Any) -> Any:
        """Encode and decode squares: (b, s, s) -> (b, s, s) float32 in [0, 1].

        In training, `objective(squares, **kwargs)` is returned instead. Training has to call this method, because
        wrappers for mixed precision and distributed training act on it.
        """
        if objective is not None:
            return objective(squares, **kwargs)
        return self.decode_code_vectors(self.quantize.code_vectors(self.encode(squares)))

    def _check_length(self, name: str, value: Tensor, ndim: int) -> None:
        _check_tensor(name, value)
        limit = self.config.num_mask_tokens
        if value.ndim != ndim or not 1 <= value.shape[1] <= limit:
            shape = tuple(value.shape)
            raise ValueError(f"{name} of shape {shape}: expected {ndim} dimensions with 1 to {limit} tokens")


def build_quantizer(config: MaskTokenizerConfig) -> Quantizer | ResidualQuantizer:
    """Build the quantizer of the configuration's code scheme."""
    return Quantizer(config) if config.code_scheme == "square" else ResidualQuantizer(config)


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"{name} is of type {type(value).__name__}: expected a tensor (torch.from_numpy converts arrays)"
        )


def _check_range(name: str, value: Tensor) -> None:
    """Reject values outside [0, 1] on CPUs, see `MaskTokenizer.encode`."""
    if torch.compiler.is_compiling() or value.device.type != "cpu" or not value.numel():
        return
    low, high = (float(bound) for bound in value.detach().aminmax())
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # false for NaN as well
        raise ValueError(f"{name} from {low:g} to {high:g}: expected values within [0, 1]")
