"""Logits processors of one `generate` call, and the code probabilities that it recorded.

Contract: `MaskTemplateMixin` calls `set_prompt_ids` and `prepare` before the call and `set_generated_ids` after it;
`get_probabilities` then returns the probabilities of the codes in an answer's text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessorList, PreTrainedTokenizerBase

from himtok_plugin.lmm.generation import CodeProbabilityRecorder
from himtok_plugin.lmm.token_automaton import TokenAutomaton
from himtok_plugin.lmm.vocabulary import MaskVocabulary
from himtok_plugin.swift_integration.options.arguments import HimTokArguments

from .constraints import build_mask_grammar


class MaskGeneration:
    """State of the current or last `generate` call.

    Args:
        settings: the plugin's options.
        vocabulary: ids of the mask tokens.
        num_mask_tokens: k of the mask tokenizer.
        generated_mask_tokens: mask tokens of a generated mask, at most k.
    """

    def __init__(
        self, settings: HimTokArguments, vocabulary: MaskVocabulary, num_mask_tokens: int, generated_mask_tokens: int
    ):
        self.settings = settings
        self.vocabulary = vocabulary
        self.num_mask_tokens = num_mask_tokens
        self.generated_mask_tokens = generated_mask_tokens
        self._automata: dict[Any, TokenAutomaton] = {}
        self._recorder: CodeProbabilityRecorder | None = None
        self._prompt: torch.Tensor | None = None
        self._ids: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recorder": None, "_prompt": None, "_ids": None, "_automata": {}}

    def set_prompt_ids(self, input_ids: torch.Tensor | None) -> None:
        """Keep the prompts' token ids (b, n): a template may replace them by embeddings before `prepare` is called."""
        self._prompt = input_ids

    def prepare(self, generate_kwargs: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Add the logits processors to the arguments of `generate`; `tokenizer` is the text tokenizer."""
        processors = LogitsProcessorList(generate_kwargs.get("logits_processor") or [])
        self._recorder = self._ids = None
        prompt, self._prompt = self._prompt, None
        if generate_kwargs.get("input_ids") is not None:
            prompt = None
        config = generate_kwargs.get("generation_config")
        if getattr(config, "num_beams", 1) in (
            None,
            1,
        ):  # beam search reorders the batch, so a batch index would not stay one answer
            self._recorder = CodeProbabilityRecorder(self.vocabulary, self.num_mask_tokens, prompt)
            processors.append(self._recorder)
        if self.settings.constrained_decoding:
            processors.append(
                build_mask_grammar(
                    self.settings,
                    self.vocabulary,
                    self.generated_mask_tokens,
                    tokenizer,
                    generate_kwargs,
                    prompt,
                    self._automata,
                )
            )
        generate_kwargs["logits_processor"] = processors
        return generate_kwargs

    def set_generated_ids(self, ids: torch.Tensor) -> None:
        """Keep the generated token ids (b, n), without the prompt."""
        self._ids = ids

    def get_probabilities(self, sequence: int, codes: list[int]) -> torch.Tensor | None:
        """Code probabilities (n, v) float32 of an answer's n codes, or None if they were not recorded.

        Args:
            sequence: index of the answer in the batch.
            codes: all codes in the answer's text so far. If they differ from the first generated ones, the text was
                edited or belongs to another answer, and None is returned.
        """
        return self.bind_probabilities(sequence)(codes)

    def bind_probabilities(self, sequence: int) -> Callable[[list[int]], torch.Tensor | None]:
        """Return `get_probabilities` of one answer as a function that stays valid when the next call begins."""
        recorder, ids, vocabulary = self._recorder, self._ids, self.vocabulary

        def probabilities(codes: list[int]) -> torch.Tensor | None:
            if recorder is None or ids is None or not codes:
                return None
            generated = ids[sequence] - vocabulary.first_code_id
            steps = ((generated >= 0) & (generated < vocabulary.codebook_size)).nonzero().flatten()[: len(codes)]
            if generated[steps].tolist() != codes:
                return None
            return recorder.probabilities(sequence, steps.tolist())

        return probabilities
