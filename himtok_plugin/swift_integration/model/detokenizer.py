"""A mask tokenizer while an LMM trains: the de-tokenizer in the LMM, the encoder outside, and only once it is needed.

Contract: `load_detokenizer` reads a mask tokenizer without its encoder; what it leaves out, `FrozenEncoder`, stays in
its file, mapped into memory and not read, until the first mask has to be encoded: training from codes made offline
never loads it. The encoder's side has a codebook of its own: no wrapper for several processes knows of it, so it is
never sharded or cast, and codes are those of any other run. `save_complete_mask_tokenizer` puts the halves together
again for a checkpoint. Does not know LMMs, trainers and ms-swift.
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

from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.mask_tokenizer.decoder import MaskDecoder
from himtok_plugin.mask_tokenizer.pixel_decoder import PixelDecoder
from himtok_plugin.mask_tokenizer.quantizer import Quantizer

from .sharding import load_unsharded

DETOKENIZER_PARTS = ("decoder", "pixel_decoder")  # the parts of a mask tokenizer that stage 2 trains
ENCODER_PARTS = ("encoder", "latent_tokens")


class Detokenizer(MaskTokenizer):
    """A `MaskTokenizer` that decodes, and leaves encoding to `encoding`."""

    _keys_to_ignore_on_load_unexpected = [rf"^{name}(\.|$)" for name in ENCODER_PARTS]

    def __init__(self, config: MaskTokenizerConfig):
        PreTrainedModel.__init__(self, config)
        self.quantize = Quantizer(config)
        self.decoder = MaskDecoder(config)
        self.pixel_decoder = PixelDecoder(config)
        self.post_init()
        self.encoding: FrozenEncoder | None = None
        self.as_loaded: dict[str, Tensor] = {}  # decoder and pixel decoder in the file, not read before they are needed

    def encode_latents(self, squares: Tensor) -> Tensor:
        raise RuntimeError("a mask tokenizer that trains inside an LMM has no encoder: ask its `encoding`")


class FrozenEncoder:
    """The frozen half: encodes, and gives codebook rows.

    Args:
        config: of the mask tokenizer.
        state: weights of everything but the de-tokenizer.
    """

    def __init__(self, config: MaskTokenizerConfig, state: Mapping[str, Tensor]):
        self.config = config
        self.state = dict(state)
        self.quantize = Quantizer(config).requires_grad_(False).eval()
        marker = "quantize."
        own = {name.removeprefix(marker): value for name, value in state.items() if name.startswith(marker)}
        self.quantize.load_state_dict(own)
        self.is_loaded = False  # True once a mask had to be encoded
        self._model = _skeleton(config)
        for name in DETOKENIZER_PARTS:
            delattr(self._model, name)

    def list_mismatched_weights(self) -> list[str]:
        """Names of weights that are missing, too many or of another shape than the configuration says."""
        expected, found = (
            {name: value.shape for name, value in state.items()} for state in (self._model.state_dict(), self.state)
        )
        return sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))

    def encode(self, squares: Tensor) -> Tensor:
        """`MaskTokenizer.encode` on the squares' device: (b, s, s) float in [0, 1] -> (b, k) int64.

        In the weights' own precision, whatever the training's: under autocast one square in twenty gets other codes.
        """
        if not self.is_loaded:
            self._model.load_state_dict(self.state, assign=True)
            self._model.requires_grad_(False).eval()
            self.is_loaded = True
        with torch.autocast(squares.device.type, enabled=False):
            return self._model.to(squares.device).encode(squares)

    def expected_code_vectors(self, probabilities: Tensor) -> Tensor:
        """See `Quantizer.expected_code_vectors`."""
        return self.quantize.to(probabilities.device).expected_code_vectors(probabilities)

    def has_same_weights_as(self, other: FrozenEncoder) -> bool:
        """Whether both give a mask the same codes, to the last digit of their weights."""
        return self.state.keys() == other.state.keys() and all(
            value.shape == other.state[name].shape and torch.equal(value.float(), other.state[name].float())
            for name, value in self.state.items()
        )


def load_detokenizer(source: Path) -> Detokenizer:
    """The de-tokenizer of a mask tokenizer, its encoder in `encoding`.

    Args:
        source: folder or weights file, see `find_mask_tokenizer`.

    Raises:
        ValueError: weights that cannot be read or do not fit, as `MaskTokenizer.from_pretrained`.
    """
    if source.is_file():  # released weights are one pickle, read as a whole
        whole = MaskTokenizer.from_released(source)
        state = whole.state_dict()
        with torch.device("meta"):
            detokenizer = Detokenizer(whole.config)
        own = {name: state[name].clone() for name in detokenizer.state_dict()}
        detokenizer.load_state_dict(own, assign=True)
    else:
        with load_unsharded():
            detokenizer = Detokenizer.from_pretrained(source)
        state = _read_weights(source)
    detokenizer.as_loaded = {name: value for name, value in state.items() if name.startswith(DETOKENIZER_PARTS)}
    frozen = {name: value for name, value in state.items() if name not in detokenizer.as_loaded}
    detokenizer.encoding = FrozenEncoder(detokenizer.config, frozen)
    if wrong := detokenizer.encoding.list_mismatched_weights():
        raise ValueError(f"mask tokenizer {str(source)!r} does not fit: {wrong}")
    return detokenizer.eval()


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights of a `save_pretrained` folder, in one file or several, mapped into memory."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    files = {SAFE_WEIGHTS_NAME}
    if not (folder / SAFE_WEIGHTS_NAME).is_file():  # as transformers looks for them
        if not index.is_file():
            raise ValueError(f"mask tokenizer {str(folder)!r}: has no {SAFE_WEIGHTS_NAME}, nor {index.name}")
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return {name: value for file in sorted(files) for name, value in load_file(folder / file).items()}


def save_complete_mask_tokenizer(detokenizer: Detokenizer, folder: str, gathered: Mapping[str, Tensor]) -> None:
    """Save the whole mask tokenizer in float32, for `MaskTokenizer.from_pretrained`.

    Args:
        detokenizer: as attached to the LMM, perhaps sharded.
        folder: a checkpoint's `mask_tokenizer/`.
        gathered: its weights as far as they were gathered over processes, perhaps in half precision; none where nothing
            is sharded, or nothing of it was trained.

    Raises:
        RuntimeError: it was trained and sharded, but not gathered.
    """
    trained = {name for name, parameter in detokenizer.named_parameters() if parameter.requires_grad}
    if trained and not gathered:
        gathered = detokenizer.state_dict()
    if missing := sorted(trained - gathered.keys()):
        raise RuntimeError(f"mask tokenizer: {missing[0]} and {len(missing) - 1} more of its weights were not gathered")
    state = {**detokenizer.encoding.state, **detokenizer.as_loaded, **{name: gathered[name] for name in trained}}
    state = {name: value.detach().cpu().float() for name, value in state.items()}
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as new:
        _skeleton(detokenizer.config).save_pretrained(new, state_dict=state)
        for file in os.listdir(new):  # in place of a file of the same name, which may be the one that is mapped here
            os.replace(os.path.join(new, file), os.path.join(folder, file))


def _skeleton(config: MaskTokenizerConfig) -> MaskTokenizer:
    with torch.device("meta"):
        return MaskTokenizer(config)
