"""The mask tokenizer of stage 2: the de-tokenizer inside the LMM, the frozen encoder outside, loaded on demand.

Contract: `load_detokenizer` reads a mask tokenizer without its encoder. `FrozenEncoder` holds the encoder's weights
memory-mapped and reads them when the first mask has to be encoded; a run with codes made offline never reads them. It
has its own codebook, which no wrapper for several processes shards or casts, so it always computes the same codes.
`save_complete_mask_tokenizer` joins both parts again for a checkpoint.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from himtok_plugin.lmm.aligned_weights import align_weights
from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.mask_tokenizer.modeling import build_quantizer

from .sharding import load_unsharded

DETOKENIZER_MODULES = ("decoder", "pixel_decoder")  # trained in stage 2
ENCODER_MODULES = ("encoder", "latent_tokens")


class Detokenizer(MaskTokenizer):
    """A `MaskTokenizer` without an encoder.

    Attributes:
        encoding: its `FrozenEncoder`; `load_detokenizer` sets it.
        as_loaded: memory-mapped weights of decoder and pixel decoder in the file.
    """

    _keys_to_ignore_on_load_unexpected = [rf"^{name}(\.|$)" for name in ENCODER_MODULES]

    def __init__(self, config: MaskTokenizerConfig):
        PreTrainedModel.__init__(self, config)
        self.build_detokenizer()
        self.post_init()
        self.encoding: FrozenEncoder | None = None
        self.as_loaded: dict[str, Tensor] = {}

    def get_encoding(self) -> FrozenEncoder:
        """Return `encoding`.

        Raises:
            RuntimeError: the de-tokenizer was not made by `load_detokenizer`.
        """
        if self.encoding is None:
            raise RuntimeError("de-tokenizer without its encoder: expected one that load_detokenizer has loaded")
        return self.encoding

    def encode_to_latents(self, squares: Tensor) -> Tensor:
        raise RuntimeError("a de-tokenizer inside an LMM has no encoder: expected a call of get_encoding().encode")


class FrozenEncoder:
    """The frozen part of a mask tokenizer: encodes masks and looks up code vectors.

    Args:
        config: of the mask tokenizer.
        state: all weights except those of the de-tokenizer.
    """

    def __init__(self, config: MaskTokenizerConfig, state: Mapping[str, Tensor]):
        self.config = config
        self.state = dict(state)
        self.quantize = build_quantizer(config).requires_grad_(False).eval()
        marker = "quantize."
        own = {name.removeprefix(marker): value for name, value in state.items() if name.startswith(marker)}
        self.quantize.load_state_dict(own)
        self.is_loaded = False  # True after the first mask was encoded
        self._model = _build_without_weights(config)
        for name in DETOKENIZER_MODULES:
            delattr(self._model, name)

    def list_mismatched_weights(self) -> list[str]:
        """Return the names of weights that are missing, unexpected or of another shape than configured."""
        expected, found = (
            {name: value.shape for name, value in state.items()} for state in (self._model.state_dict(), self.state)
        )
        return sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))

    def encode(self, squares: Tensor) -> Tensor:
        """Encode squares on their device: (b, s, s) float in [0, 1] -> (b, k) int64.

        It runs in the precision of the weights: with autocast, one square in twenty gets other codes.
        """
        if not self.is_loaded:
            self._model.load_state_dict(self.state, assign=True)
            align_weights(self._model)
            self._model.requires_grad_(False).eval()
            self.is_loaded = True
        with torch.autocast(squares.device.type, enabled=False):
            return self._model.to(squares.device).encode(squares)

    def expected_code_vectors(self, probabilities: Tensor) -> Tensor:
        """See `Quantizer.expected_code_vectors`."""
        return self.quantize.to(probabilities.device).expected_code_vectors(probabilities)

    def has_same_weights_as(self, other: FrozenEncoder) -> bool:
        """Whether both have the same weights, so that they encode a mask alike."""
        return self.state.keys() == other.state.keys() and all(
            value.shape == other.state[name].shape and torch.equal(value.float(), other.state[name].float())
            for name, value in self.state.items()
        )


def load_detokenizer(source: Path) -> Detokenizer:
    """Load the de-tokenizer of a mask tokenizer, with its encoder in `encoding`.

    Args:
        source: folder or weights file, see `find_mask_tokenizer`.

    Raises:
        ValueError: the weights cannot be read or do not fit the configuration.
    """
    if source.is_file():  # a released weights file is one pickle that is read at once
        whole = MaskTokenizer.from_released(source)
        state = whole.state_dict()
        with torch.device("meta"):
            detokenizer = Detokenizer(whole.config)
        own = {name: state[name].clone() for name in detokenizer.state_dict()}
        detokenizer.load_state_dict(own, assign=True)
    else:
        with load_unsharded():
            detokenizer = Detokenizer.from_pretrained(source)
        state = _map_weights(source)
    detokenizer.as_loaded = {name: value for name, value in state.items() if name.startswith(DETOKENIZER_MODULES)}
    frozen = {name: value for name, value in state.items() if name not in detokenizer.as_loaded}
    encoder = detokenizer.encoding = FrozenEncoder(detokenizer.config, frozen)
    if mismatched := encoder.list_mismatched_weights():
        raise ValueError(f"mask tokenizer {str(source)!r}: got weights that do not fit its config.json: {mismatched}")
    return detokenizer.eval()


def _map_weights(folder: Path) -> dict[str, Tensor]:
    """Return all weights of a `save_pretrained` folder, memory-mapped, from one file or several."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    files = {SAFE_WEIGHTS_NAME}
    if not (folder / SAFE_WEIGHTS_NAME).is_file():  # the order in which transformers looks for files
        if not index.is_file():
            raise ValueError(f"mask tokenizer {str(folder)!r}: got no weights, expected {SAFE_WEIGHTS_NAME}")
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return {name: value for file in sorted(files) for name, value in load_file(folder / file).items()}


def save_complete_mask_tokenizer(detokenizer: Detokenizer, folder: str, gathered: Mapping[str, Tensor]) -> None:
    """Save de-tokenizer and encoder in float32 as one mask tokenizer, for `MaskTokenizer.from_pretrained`.

    Args:
        detokenizer: attached to the LMM, sharded or not.
        folder: the folder `mask_tokenizer/` of a checkpoint.
        gathered: the de-tokenizer's weights, gathered from all processes, possibly in half precision. Empty if nothing
            is sharded or the de-tokenizer is frozen.

    Raises:
        RuntimeError: trained, sharded weights are missing in `gathered`.
    """
    trained = {name for name, parameter in detokenizer.named_parameters() if parameter.requires_grad}
    if trained and not gathered:
        gathered = detokenizer.state_dict()
    state = {**detokenizer.get_encoding().state, **detokenizer.as_loaded}
    # A sharded weight that was not gathered is empty, or a part of the whole.
    shapes = {name: value.shape for name, value in gathered.items()}
    if missing := sorted(name for name in trained if shapes.get(name) != state[name].shape):
        raise RuntimeError(f"mask tokenizer: {missing[0]} and {len(missing) - 1} more of its weights were not gathered")
    state |= {name: gathered[name] for name in trained}
    state = {name: value.detach().cpu().float() for name, value in state.items()}
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        _build_without_weights(detokenizer.config).save_pretrained(new, state_dict=state)
        for file in os.listdir(new):  # replace, not overwrite: the old file can be the one that is mapped here
            os.replace(os.path.join(new, file), os.path.join(folder, file))


def _build_without_weights(config: MaskTokenizerConfig) -> MaskTokenizer:
    with torch.device("meta"):
        return MaskTokenizer(config)
