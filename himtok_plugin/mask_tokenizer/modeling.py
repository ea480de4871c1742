"""`MaskTokenizer`: encoder, quantizer and de-tokenizer put together as a transformers model.

Contract: squares (b, s, s) in [0, 1] <-> codes (b, k). Does not know text, images or how squares are made
(`masks.py`); the training objective stands in `objective.py`.

Shapes throughout: b batch, k mask tokens, n <= k given tokens, d code width, v codebook size, s square side.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from .code_search import SWEEPS, check_candidates, search_codes
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

RANGE_TOLERANCE = 1e-3  # by which rounding, of half precision too, may leave [0, 1]


class MaskTokenizer(PreTrainedModel):
    """Hierarchical mask tokenizer of HiMTok (arXiv 2503.13026, section 3.1; built on TiTok, arXiv 2406.07550)."""

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
        self.latent_tokens = nn.Parameter(torch.empty(config.num_mask_tokens, config.encoder_width))
        self.encoder = MaskEncoder(config)
        self.quantize = Quantizer(config)
        self.decoder = MaskDecoder(config)
        self.pixel_decoder = PixelDecoder(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers' wrappers in `init` respect weights that were already loaded; only what is fresh is drawn.
        from transformers import initialization as init

        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in_init = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
            if module is self.quantize.embedding_proj:
                init.eye_(module.weight)
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
            if name in module._parameters:
                init.normal_(module._parameters[name], std=module._parameters[name].shape[-1] ** -0.5)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> MaskTokenizer:
        """Load a mask tokenizer.

        Args:
            pretrained_model_name_or_path: `save_pretrained` folder or hub id; a folder, file or hub id that holds
                only released weights (`himtok.pth`), which are converted on the fly; or "default".
            kwargs: as of any transformers model, fields of the configuration among them; released weights know
                those, `dtype`, `device_map` and what concerns the hub.

        Raises:
            ValueError: nothing there that could be a mask tokenizer, weights or fields that do not fit, or a keyword
                that means nothing to released weights.
        """
        found = find_mask_tokenizer(pretrained_model_name_or_path, kwargs)
        kwargs.pop("subfolder", None)  # what was found lies in it
        if found.is_file():
            options = ReleasedOptions.of(found, kwargs)
            return cls.from_released(found, options.fields).to(options.device, options.dtype)
        # Of the report, keys of another shape are named; without it transformers raises before they can be.
        options = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}
        try:
            loaded, report = super().from_pretrained(os.fspath(found), *args, **options)
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"mask tokenizer {os.fspath(found)!r} cannot be read: {reason}") from error
        wrong = {name: sorted(keys, key=str) for name, keys in report.items() if keys}
        if wrong:
            raise ValueError(f"mask tokenizer {os.fspath(found)!r} does not fit: {wrong}")
        loaded.config.check()  # transformers sets fields that are keywords here without asking
        return loaded

    @classmethod
    def from_released(cls, path: str | os.PathLike, fields: Mapping[str, Any] | None = None) -> MaskTokenizer:
        """Load a released weights file (`himtok.pth`) in float32, in evaluation mode.

        Args:
            path: the file.
            fields: of the configuration, instead of those that are read off the shapes.

        Raises:
            ValueError: not a file of tensors, or keys or shapes that are not a mask tokenizer's, all named.
        """
        config, state = read_released(path, fields)
        cls.check_shapes(config, shapes_of(state), path)
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state, assign=True)
        return model.eval()

    @classmethod
    def check_shapes(cls, config: MaskTokenizerConfig, shapes: Mapping[str, tuple[int, ...]], source: object) -> None:
        """Compare the shapes of a state dict, by key, with those that the configuration asks for.

        Raises:
            ValueError: they differ; every key is named, after `source`.
        """
        with torch.device("meta"):
            expected = shapes_of(cls(config).state_dict())
        check_keys(shapes, expected, source)

    def enable_input_require_grads(self) -> None:
        """Nothing to do: there are no input embeddings. (ms-swift replaces transformers' method, which would see that,
        in every process that has loaded an InternVL.)"""

    def encode(self, squares: Tensor, candidates: int = 1, sweeps: int = SWEEPS) -> Tensor:
        """Squares to codes, without gradient.

        Args:
            squares: (b, s, s) float in [0, 1], see `masks.to_square`.
            candidates: 1 takes the code nearest to each latent, as training does. More, up to v, decodes so many of
                the nearest at every position and keeps the one whose mask is closest: better masks, and slower by as
                much as k * candidates * sweeps decodings (`code_search.search_codes`).
            sweeps: passes of that search over the positions, where there is one.

        Returns:
            (b, k) int64 in [0, v).

        Raises:
            ValueError: no tensor, wrong shape or dtype, numbers out of range; on a CPU, values beyond [0, 1] as well.
                Elsewhere reading them would let a training step wait for the device.
        """
        check_candidates(candidates, self.config.codebook_size)
        with torch.no_grad():
            latents = self.encode_latents(squares)
            if candidates == 1:
                return self.quantize.nearest_codes(latents)
            return search_codes(self.quantize.nearest_codes(latents, candidates), squares, self._decode_valid, sweeps)

    def encode_latents(self, squares: Tensor) -> Tensor:
        """(b, s, s) squares -> (b, k, d) latents before quantization, in the model's dtype, with gradient."""
        _check_tensor("squares", squares)
        side = self.config.image_size
        if squares.ndim != 3 or squares.shape[1:] != (side, side):
            raise ValueError(f"squares of shape {tuple(squares.shape)}: expected (b, {side}, {side})")
        if not squares.is_floating_point():
            raise ValueError(f"squares of dtype {squares.dtype}: expected a float dtype with values in [0, 1]")
        _check_range("squares", squares)
        return self.encoder(squares.to(self.latent_tokens.dtype), self.latent_tokens)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to mask probabilities.

        Args:
            codes: (b, n) int64 in [0, v), any 1 <= n <= k; a prefix gives a coarser mask.

        Returns:
            (b, s, s) float32 in [0, 1].

        Raises:
            ValueError: no tensor, wrong shape, dtype or a code out of range.
        """
        self._check_length("codes", codes, ndim=2)
        if codes.dtype not in (torch.int64, torch.int32):
            raise ValueError(f"codes of dtype {codes.dtype}: expected int64")
        # Reading the values waits for the device and would break a compiled graph, so the check stays outside it.
        if not torch.compiler.is_compiling() and codes.numel():
            low, high = codes.aminmax()
            if low < 0 or high >= self.config.codebook_size:
                raise ValueError(f"codes from {int(low)} to {int(high)}: expected 0 to {self.config.codebook_size - 1}")
        return self._decode_valid(codes)

    def _decode_valid(self, codes: Tensor) -> Tensor:
        return self.decode_code_vectors(self.quantize.rows(codes))

    def decode_probabilities(self, probabilities: Tensor) -> Tensor:
        """Soft decoding: the expected codebook row of every position is decoded.

        Args:
            probabilities: (b, n, v) float; rows sum to 1, or are all zero for positions that are to be ignored
                (not the same as leaving them out: a zero row still passes the decoder's embedding bias).

        Returns:
            (b, s, s) float32 in [0, 1], differentiable.

        Raises:
            ValueError: no tensor, or of a wrong shape; on a CPU, as for `encode`, values beyond [0, 1].
        """
        self._check_length("probabilities", probabilities, ndim=3)
        if probabilities.shape[2] != self.config.codebook_size:
            raise ValueError(f"probabilities over {probabilities.shape[2]} codes: expected {self.config.codebook_size}")
        _check_range("probabilities", probabilities)
        return self.decode_code_vectors(self.quantize.expected_code_vectors(probabilities))

    def decode_code_vectors(self, rows: Tensor) -> Tensor:
        """(b, n, d) codebook rows -> (b, s, s) float32 probabilities in [0, 1]."""
        logits = self.pixel_decoder(self.decoder(rows)).float()
        return torch.sigmoid((logits - self.config.output_shift) * self.config.output_scale)

    def forward(self, squares: Tensor, objective: Callable[..., Any] | None = None, **kwargs) -> Any:
        """Reconstruction at full length: (b, s, s) -> (b, s, s) float32 in [0, 1].

        With a training `objective`, that is called with the squares and `kwargs` instead: training has to pass through
        here, because wrappers for mixed precision and for several processes act on this call.
        """
        if objective is not None:
            return objective(squares, **kwargs)
        return self.decode_code_vectors(self.quantize.rows(self.encode(squares)))

    def _check_length(self, name: str, value: Tensor, ndim: int) -> None:
        _check_tensor(name, value)
        limit = self.config.num_mask_tokens
        if value.ndim != ndim or not 1 <= value.shape[1] <= limit:
            shape = tuple(value.shape)
            raise ValueError(f"{name} of shape {shape}: expected {ndim} dimensions with 1 to {limit} tokens")


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is of type {type(value).__name__}: expected a tensor, of an array torch.from_numpy")


def _check_range(name: str, value: Tensor) -> None:
    """Refuse what is not within [0, 1]; a look at values costs nothing on a CPU alone, see `MaskTokenizer.encode`."""
    if torch.compiler.is_compiling() or value.device.type != "cpu" or not value.numel():
        return
    low, high = (float(bound) for bound in value.detach().aminmax())
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # false for NaN as well
        raise ValueError(f"{name} from {low:g} to {high:g}: expected values within [0, 1]")
