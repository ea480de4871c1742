"""What a run needs to read and write masks: options, vocabulary, mask tokenizer. Stored at the text tokenizer.

ms-swift passes the text tokenizer to every template, engine and worker, so they all find the same `MaskRuntime` as its
attribute `himtok`. Its pickle is small: it leaves the loaded mask tokenizer out, and the other process loads it again.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.prediction.calibration import Calibration
from himtok_plugin.prediction.predictor import Answer, MaskPredictor, PredictedMask
from himtok_plugin.prediction.refinement import SAM_KINDS, SamRefiner
from himtok_plugin.swift_integration.options.checkpoint_settings import DEFAULT_DECODING
from himtok_plugin.words.known_words import KnownWords, find_question

from .attached_mask_tokenizer import attach_mask_tokenizer
from .checkpoint_sidecar import load_mask_tokenizer
from .constraints import build_answer_pattern
from .detokenizer import Detokenizer

if TYPE_CHECKING:
    from himtok_plugin.swift_integration.options.arguments import HimTokArguments
from .mask_generation import MaskGeneration


class MaskRuntime:
    """Options, vocabulary and mask tokenizer of a run.

    Args:
        settings: the plugin's options.
        source: folder or weights file of the mask tokenizer.
        config: its configuration.
        vocabulary: ids of the mask tokens in the text tokenizer.
        trainer_encodes: whether `MaskTrainer` encodes the masks of a whole batch. With any other trainer the template
            encodes the masks of each sample.

    Attributes:
        generated_mask_tokens: mask tokens of a generated mask, at most k.
        embeddings_are_new: whether the mask tokens' embeddings were initialized at load and no adapter has them.
        known_words: words of the model's training questions; None if its training is not known.

    Raises:
        ValueError: the option `num_mask_tokens` exceeds that of the mask tokenizer.
    """

    def __init__(
        self,
        settings: HimTokArguments,
        source: Path,
        config: MaskTokenizerConfig,
        vocabulary: MaskVocabulary,
        trainer_encodes: bool = True,
    ):
        self.settings = settings
        self.source = source
        self.vocabulary = vocabulary
        self.num_mask_tokens = config.num_mask_tokens
        self.codebook_size = config.codebook_size
        self.image_size = config.image_size
        limit = settings.num_mask_tokens
        if limit is not None and limit > config.num_mask_tokens:
            raise ValueError(f"num_mask_tokens: got {limit}, expected at most the tokenizer's {config.num_mask_tokens}")
        self.generated_mask_tokens = limit or config.num_mask_tokens
        self.generation = MaskGeneration(settings, vocabulary, self.num_mask_tokens, self.generated_mask_tokens)
        self.trainer_encodes = trainer_encodes
        self.embeddings_are_new = False
        self.known_words: KnownWords | None = None
        self.calibration = Calibration.load(source)
        self._mask_tokenizer: MaskTokenizer | None = None
        self._model: weakref.ref[nn.Module] | None = None  # beside which the mask tokenizer is
        self._refiner: SamRefiner | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mask_tokenizer": None, "_model": None, "_refiner": None}

    def __deepcopy__(self, memo: dict) -> MaskRuntime:
        return self  # ms-swift copies text tokenizers; all copies belong to the same run

    def attach(self, model: PreTrainedModel, mask_tokenizer: MaskTokenizer, as_submodule: bool) -> None:
        """Attach the mask tokenizer to the model, and use it, so that its training takes effect here.

        Args:
            model: the LMM.
            mask_tokenizer: loaded, on any device.
            as_submodule: see `attach_mask_tokenizer`.
        """
        attach_mask_tokenizer(model, mask_tokenizer, as_submodule)
        self._mask_tokenizer = mask_tokenizer
        self._model = None if as_submodule else weakref.ref(model)

    def mask_tokenizer(self) -> MaskTokenizer:
        """Return the mask tokenizer, on the model's device; load it in the first call."""
        in_worker = torch.utils.data.get_worker_info() is not None
        if in_worker and self._mask_tokenizer is not None and self._mask_tokenizer.device.type != "cpu":
            self._mask_tokenizer = None  # a forked process cannot use its parent's device
        if self._mask_tokenizer is None:
            device = "cuda" if torch.cuda.is_available() and not in_worker else "cpu"
            self._mask_tokenizer = load_mask_tokenizer(self.source).to(device).eval()
        model = None if self._model is None or in_worker else self._model()
        if model is not None:  # trainers move the model after it is loaded
            where = next(model.parameters()).device
            if self._mask_tokenizer.device != where and where.type != "meta":
                self._mask_tokenizer.to(where)
        return self._mask_tokenizer

    def encode(self, squares: torch.Tensor) -> torch.Tensor:
        """Encode squares: (b, s, s) float32 in [0, 1] -> (b, k) int64 codes."""
        tokenizer = self.mask_tokenizer()
        encoder = tokenizer.get_encoding() if isinstance(tokenizer, Detokenizer) else tokenizer
        return encoder.encode(squares.to(tokenizer.device))

    def predict(self, answers: list[Answer]) -> list[list[PredictedMask]]:
        """Predict the masks of a batch of answers with the run's options."""
        tokenizer = self.mask_tokenizer()
        training = tokenizer.training
        settings = self.settings
        predictor = MaskPredictor(
            tokenizer.eval(),
            settings.mask_decoding or DEFAULT_DECODING,
            settings.mask_threshold,
            self.calibration,
            settings.min_score,
            keep_squares=settings.refiner in SAM_KINDS,
            resize=settings.mask_resize,
        )
        try:
            return predictor(answers)
        finally:
            tokenizer.train(training)

    def find_unknown_words(self, messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Find the words of a conversation's last question that no question of the model's training had."""
        return [] if self.known_words is None else self.known_words.find_unknown(find_question(messages))

    def build_answer_pattern(self) -> str | None:
        """Build the regular expression that this run's answers match; None if generation is unconstrained."""
        return build_answer_pattern(self.settings, self.codebook_size, self.generated_mask_tokens)

    def refiner(self) -> SamRefiner:
        """Return the model of `--refiner sam|sam2|sam3` on the mask tokenizer's device; load it in the first call."""
        if self._refiner is None:
            device = self.mask_tokenizer().device
            self._refiner = SamRefiner.from_pretrained(self.settings.refiner, self.settings.refiner_model, device)
        return self._refiner


def get_mask_runtime(template: Any) -> MaskRuntime | None:
    """Return the run's `MaskRuntime`; None for a model without masks: a text-only one, or a mask tokenizer itself."""
    return getattr(template.tokenizer, "himtok", None)
