"""What one run knows of its masks: settings, vocabulary, mask tokenizer; kept at the text tokenizer as `.himtok`.

The text tokenizer is what ms-swift hands to every template, engine and worker, so this is how they all find the same
mask tokenizer. Pickles small: a loaded mask tokenizer stays behind and is loaded again where it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from himtok_plugin.lmm.generation import CodeProbabilityRecorder
from himtok_plugin.lmm.token_automaton import TokenAutomaton
from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig
from himtok_plugin.prediction.calibration import Calibration
from himtok_plugin.prediction.predictor import Answer, MaskPredictor, PredictedMask
from himtok_plugin.prediction.refinement import SAM_KINDS, SamRefiner

from .constraints import answer_pattern, mask_grammar
from .tokenizer_halves import Detokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from himtok_plugin.swift_integration.options.arguments import HimTokArguments


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
        self.generation = MaskGeneration(self)
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

    def answer_pattern(self) -> str | None:
        """Regular expression of this run's answers; None where generation is free."""
        return answer_pattern(self.settings, self.codebook_size, self.generated_mask_tokens)

    def refiner(self) -> SamRefiner:
        """The model behind `--refiner sam|sam2|sam3`, loaded when first asked for, on the mask tokenizer's device."""
        if self._refiner is None:
            device = self.mask_tokenizer().device
            self._refiner = SamRefiner.from_pretrained(self.settings.refiner, self.settings.refiner_model, device)
        return self._refiner


class MaskGeneration:
    """One call of `generate`: its logits processors before, its code probabilities after."""

    def __init__(self, runtime: MaskRuntime):
        self.runtime = runtime
        self._automata: dict[Any, TokenAutomaton] = {}
        self._recorder: CodeProbabilityRecorder | None = None
        self._prompt: torch.Tensor | None = None
        self._ids: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recorder": None, "_prompt": None, "_ids": None, "_automata": {}}

    def set_prompt_ids(self, input_ids: torch.Tensor | None) -> None:
        """Take note of the prompts' tokens (b, n), which a template may turn into embeddings before `prepare`."""
        self._prompt = input_ids

    def prepare(self, generate_kwargs: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Add the logits processors to the arguments of `generate`; `tokenizer` is the text tokenizer."""
        from transformers import LogitsProcessorList

        runtime = self.runtime
        processors = LogitsProcessorList(generate_kwargs.get("logits_processor") or [])
        self._recorder = self._ids = None
        prompt, self._prompt = self._prompt, None
        if generate_kwargs.get("input_ids") is not None:
            prompt = None
        config = generate_kwargs.get("generation_config")
        if getattr(config, "num_beams", 1) in (None, 1):  # beams change places, so rows would not be sequences
            self._recorder = CodeProbabilityRecorder(runtime.vocabulary, runtime.num_mask_tokens, prompt)
            processors.append(self._recorder)
        if runtime.settings.constrained_decoding:
            processors.append(
                mask_grammar(
                    runtime.settings,
                    runtime.vocabulary,
                    runtime.generated_mask_tokens,
                    tokenizer,
                    generate_kwargs,
                    prompt,
                    self._automata,
                )
            )
        generate_kwargs["logits_processor"] = processors
        return generate_kwargs

    def set_generated_ids(self, ids: torch.Tensor) -> None:
        """Take note of the generated ids (b, n), prompt removed."""
        self._ids = ids

    def probabilities(self, sequence: int, codes: list[int]) -> torch.Tensor | None:
        """(codes, v) float32 of the last call's answer, None where they were not recorded.

        Args:
            sequence: row of the batch.
            codes: the codes in the answer's text so far; if they are not those that were generated first, the text was
                changed on its way or is another answer's, and has no probabilities here.
        """
        return self.recorded(sequence)(codes)

    def recorded(self, sequence: int) -> Callable[[list[int]], torch.Tensor | None]:
        """`probabilities` of one answer for later, when the next call may have begun."""
        recorder, ids, vocabulary = self._recorder, self._ids, self.runtime.vocabulary

        def probabilities(codes: list[int]) -> torch.Tensor | None:
            if recorder is None or ids is None or not codes:
                return None
            generated = ids[sequence] - vocabulary.first_code_id
            steps = ((generated >= 0) & (generated < vocabulary.codebook_size)).nonzero().flatten()[: len(codes)]
            if generated[steps].tolist() != codes:
                return None
            return recorder.probabilities(sequence, steps.tolist())

        return probabilities
