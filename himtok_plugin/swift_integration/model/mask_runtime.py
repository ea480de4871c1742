"""What one run knows of its masks: settings, vocabulary, mask tokenizer; kept at the text tokenizer as `.himtok`.

The text tokenizer is what ms-swift hands to every template, engine and worker, so this is how they all find the same
mask tokenizer. Pickles small: a loaded mask tokenizer stays behind and is loaded again where it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.prediction.calibration import Calibration
from himtok_plugin.prediction.predictor import Answer, MaskPredictor, PredictedMask
from himtok_plugin.prediction.refinement import SAM_KINDS, SamRefiner

from .constraints import build_answer_pattern
from .detokenizer import Detokenizer

if TYPE_CHECKING:
    from himtok_plugin.swift_integration.options.arguments import HimTokArguments
from .mask_generation import MaskGeneration


class MaskRuntime:
    """Settings, vocabulary and mask tokenizer of a run.

    Args:
        settings: the plugin's options.
        source: folder or weights file of the mask tokenizer.
        config: its configuration.
        vocabulary: where its codes stand in the text tokenizer.
        trainer_encodes: whether `MaskTrainer` encodes masks, a batch at a time; with any other trainer a row's masks
            are encoded where the row is.
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
            raise ValueError(f"num_mask_tokens={limit}: expected at most {config.num_mask_tokens} as the tokenizer")
        self.generated_mask_tokens = limit or config.num_mask_tokens
        self.generation = MaskGeneration(settings, vocabulary, self.num_mask_tokens, self.generated_mask_tokens)
        self.trainer_encodes = trainer_encodes
        self.embeddings_are_new = (
            False  # whether the mask tokens' embedding rows were drawn at load, and no adapter has them
        )
        self.calibration = Calibration.load(source)
        self._mask_tokenizer: MaskTokenizer | None = None
        self._refiner: SamRefiner | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mask_tokenizer": None, "_refiner": None}

    def __deepcopy__(self, memo) -> MaskRuntime:
        return self  # ms-swift copies text tokenizers; all copies belong to the same run

    def attach(self, mask_tokenizer: MaskTokenizer) -> None:
        """Use the mask tokenizer that sits in the model, so that training it is seen here."""
        self._mask_tokenizer = mask_tokenizer

    def mask_tokenizer(self) -> MaskTokenizer:
        """The mask tokenizer, loaded when first asked for."""
        in_worker = torch.utils.data.get_worker_info() is not None
        if in_worker and self._mask_tokenizer is not None and self._mask_tokenizer.device.type != "cpu":
            self._mask_tokenizer = None  # a forked process cannot use its parent's device
        if self._mask_tokenizer is None:
            device = "cuda" if torch.cuda.is_available() and not in_worker else "cpu"
            self._mask_tokenizer = MaskTokenizer.from_pretrained(self.source).to(device).eval()
        return self._mask_tokenizer

    def encode(self, squares: torch.Tensor) -> torch.Tensor:
        """(b, s, s) float32 squares in [0, 1] -> (b, k) int64 codes."""
        tokenizer = self.mask_tokenizer()
        encoder = tokenizer.encoding if isinstance(tokenizer, Detokenizer) else tokenizer
        return encoder.encode(squares.to(tokenizer.device))

    def predict(self, answers: list[Answer]) -> list[list[PredictedMask]]:
        """Masks of a batch of answers by this run's settings."""
        tokenizer = self.mask_tokenizer()
        training = tokenizer.training
        settings = self.settings
        predictor = MaskPredictor(
            tokenizer.eval(),
            settings.mask_decoding,
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

    def build_answer_pattern(self) -> str | None:
        """Regular expression of this run's answers; None where generation is free."""
        return build_answer_pattern(self.settings, self.codebook_size, self.generated_mask_tokens)

    def refiner(self) -> SamRefiner:
        """The model behind `--refiner sam|sam2|sam3`, loaded when first asked for, on the mask tokenizer's device."""
        if self._refiner is None:
            device = self.mask_tokenizer().device
            self._refiner = SamRefiner.from_pretrained(self.settings.refiner, self.settings.refiner_model, device)
        return self._refiner


def get_mask_runtime(template) -> MaskRuntime | None:
    """The run's masks; None for a model that has none (the mask tokenizer itself, a text-only one)."""
    return getattr(template.tokenizer, "himtok", None)
