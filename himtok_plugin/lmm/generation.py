"""Logits processors for transformers' `generate`: one keeps masks legal, one records code probabilities.

Both are computed from the tokens so far, for all sequences of a batch at once, and keep no state per sequence.
Therefore batches, beam search and sampling need no special treatment.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LogitsProcessor

from himtok_plugin.hierarchical_loss import code_probabilities

from .token_automaton import TokenAutomaton
from .vocabulary import MaskVocabulary


class MaskProgress:
    """Whether each sequence is inside a mask, and how many codes the mask has, without waiting for the device.

    Args:
        vocabulary: ids of the mask tokens.
        num_mask_tokens: maximum number of codes per mask.
        prompt: (b, n) int64 tokens of the prompts, padded on the left. Needed to detect masks that a prompt opens if
            `generate` gets the prompts as embeddings.
    """

    def __init__(self, vocabulary: MaskVocabulary, num_mask_tokens: int, prompt: Tensor | None = None):
        self.vocabulary = vocabulary
        self.num_mask_tokens = num_mask_tokens
        # The longest mask and its start token.
        self.window = num_mask_tokens + 1
        self.prompt = None if prompt is None else prompt[:, -self.window :]

    def __call__(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the progress of each sequence.

        Args:
            input_ids: (b, n) int64 tokens so far; n may be 0 if the prompts are embeddings.

        Returns:
            (b,) bool, whether the next token belongs to a mask, and (b,) int64, the number of its codes so far.
        """
        recent = input_ids[:, -self.window :]
        if self.prompt is not None and recent.shape[1] < self.window:
            copies = len(input_ids) // len(self.prompt)  # beams or several answers per prompt are adjacent
            recent = torch.cat([self.prompt.repeat_interleave(copies, 0), recent], dim=1)[:, -self.window :]
        recent = recent.flip(1)
        first, size = self.vocabulary.first_code_id, self.vocabulary.codebook_size
        is_code = (recent >= first) & (recent < first + size)
        codes = is_code.long().cumprod(dim=1).sum(dim=1)
        padded = torch.nn.functional.pad(recent, (0, 1), value=-1)
        before = padded.gather(1, codes[:, None]).squeeze(1)
        return before == self.vocabulary.start_id, codes


class MaskGrammar(LogitsProcessor):
    """Restricts generation to legal mask text.

    Inside a mask, 1 to `num_mask_tokens` codes are allowed, then the end token. Outside masks, codes and end tokens are
    not allowed, and the number of masks is limited. An answer that reaches its maximum length may end inside a mask.

    Args:
        vocabulary: ids of the mask tokens.
        num_mask_tokens: maximum number of codes per mask.
        prompt: see `MaskProgress`.
        prompt_length: number of prompt tokens in `input_ids`; masks in the prompt are not counted.
        text: which tokens are allowed outside masks; None: any.
        min_masks: minimum number of masks, before which no token of `stop_ids` is allowed.
        max_masks: maximum number of masks, after which no start token is allowed.
        stop_ids: tokens that end an answer.
        max_new_tokens: maximum length of an answer. If set, missing masks are started while whole masks still fit.
        early_stop: a mask is ended if the `normalised_entropy` of its next code is at least this; None: never.

    Raises:
        ValueError: labelled masks are limited in number, but `stop_ids` is empty.
    """

    def __init__(
        self,
        vocabulary: MaskVocabulary,
        num_mask_tokens: int,
        prompt: Tensor | None = None,
        *,
        prompt_length: int = 0,
        text: TokenAutomaton | None = None,
        min_masks: int = 0,
        max_masks: int | None = None,
        stop_ids: tuple[int, ...] = (),
        max_new_tokens: int | None = None,
        early_stop: float | None = None,
    ):
        if text is not None and text.grammar.only_text and max_masks is not None and not stop_ids:
            raise ValueError("stop_ids: got none, expected at least one that ends an answer of labelled masks")
        self.vocabulary = vocabulary
        self.num_mask_tokens = num_mask_tokens
        self.progress = MaskProgress(vocabulary, num_mask_tokens, prompt)
        self.prompt_length = prompt_length
        self.text = text
        self.min_masks = min_masks
        self.max_masks = max_masks
        self.stop_ids = stop_ids
        self.max_new_tokens = max_new_tokens
        self.early_stop = early_stop

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(b, n) tokens so far, (b, V) scores -> (b, V) scores, -inf for tokens that are not allowed next."""
        inside, codes = self.progress(input_ids)
        columns = torch.arange(scores.shape[1], device=scores.device)
        allowed = torch.where(
            inside[:, None],
            self._allowed_inside(codes, scores, columns),
            self._allowed_outside(input_ids[:, self.prompt_length :], columns),
        )
        return scores.masked_fill(~allowed, float("-inf"))

    def _allowed_inside(self, codes: Tensor, scores: Tensor, columns: Tensor) -> Tensor:
        """(b, V) bool: tokens that are allowed inside a mask with (b,) codes so far."""
        more = codes < self.num_mask_tokens
        if self.early_stop is not None:
            is_uncertain = normalised_entropy(scores[:, self.vocabulary.code_ids]) >= self.early_stop
            more = more & ~(is_uncertain & (codes > 0))
        is_end = columns == self.vocabulary.end_id
        return (self._is_code(columns) & more[:, None]) | (is_end & (codes > 0)[:, None])

    def _allowed_outside(self, answer: Tensor, columns: Tensor) -> Tensor:
        """(b, V) bool: tokens that are allowed outside masks after (b, n) tokens of the answers."""
        is_start, is_stop = columns == self.vocabulary.start_id, self._is_stop(columns)
        closed = (answer == self.vocabulary.end_id).sum(1)
        if self.text is None:
            allowed = ~(self._is_code(columns) | (columns == self.vocabulary.end_id)).expand(len(answer), -1)
            may_start = torch.ones_like(closed, dtype=torch.bool)
        else:
            text = self.text.to(answer.device)
            state, known = text.state(answer), text.allowed.shape[1]
            # Logits may be wider than the vocabulary. The extra columns write no text, so a grammar may forbid them.
            width = len(columns)
            rest = (~is_start & (not text.grammar.only_text))[known:].expand(len(answer), -1)
            allowed = torch.cat([text.allowed[state, :width], rest], dim=1)
            may_start = text.allowed[state, self.vocabulary.start_id]
        if self.max_masks is not None:
            enough = closed >= self.max_masks
            allowed = allowed & ~(is_start & enough[:, None])
            if self.text is not None and self.text.grammar.only_text:
                is_complete = enough & (state == self.text.grammar.after_mask)  # another line would need a mask
                allowed = allowed & (is_stop | ~is_complete[:, None])
        if self.min_masks:
            allowed = allowed & ~(is_stop & (closed < self.min_masks)[:, None])
            if self.max_new_tokens is not None:
                missing = (self.min_masks - closed).clamp(min=0)
                mask_length = self.num_mask_tokens + 2
                left = self.max_new_tokens - answer.shape[1]
                # One more token is needed to end the answer.
                must_start = (missing > 0) & (left <= missing * mask_length + 1) & may_start
                allowed = torch.where(must_start[:, None], is_start, allowed)
        return allowed

    def _is_code(self, columns: Tensor) -> Tensor:
        codes = self.vocabulary.code_ids
        return (columns >= codes.start) & (columns < codes.stop)

    def _is_stop(self, columns: Tensor) -> Tensor:
        found = torch.zeros_like(columns, dtype=torch.bool)
        for stop in self.stop_ids:  # they are few, and a tensor of them would have to be copied to the device
            found |= columns == stop
        return found


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy of the code probabilities, divided by that of a uniform distribution: the uncertainty of the next code.

    Codes go from coarse to fine. If almost any code could be next, further codes would add detail that the model does
    not see, and the mask of the codes so far is about as good. The effect depends on the checkpoint.
    examples/04_fewer_tokens.py compares it with fixed numbers of codes, which were better for the checkpoint measured.

    Args:
        logits: (..., v) of any float dtype: the logits of the codes only.

    Returns:
        (...) float32 in [0, 1]; 0 for a codebook of one code.
    """
    probabilities = code_probabilities(logits)
    return torch.special.entr(probabilities).sum(-1) / max(math.log(logits.shape[-1]), 1e-6)


class CodeProbabilityRecorder(LogitsProcessor):
    """Records the logits of the codes at every step at which a sequence is inside a mask.

    It must come before `MaskGrammar` and temperature in the list of processors, so that it gets the model's own logits.

    Args:
        vocabulary, num_mask_tokens, prompt: see `MaskProgress`.
    """

    def __init__(self, vocabulary: MaskVocabulary, num_mask_tokens: int, prompt: Tensor | None = None):
        self.vocabulary = vocabulary
        self.progress = MaskProgress(vocabulary, num_mask_tokens, prompt)
        self._prompt_length: int | None = None
        self._steps: dict[int, Tensor] = {}  # step -> (b, v) logits

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Record (b, V) scores and return them unchanged."""
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1]
        inside, _ = self.progress(input_ids)
        if inside.any():  # generation waits for the device at every step anyway
            self._steps[input_ids.shape[1] - self._prompt_length] = scores[:, self.vocabulary.code_ids].clone()
        return scores

    def probabilities(self, sequence: int, steps: list[int]) -> Tensor | None:
        """Code probabilities at generated positions.

        Args:
            sequence: index in the batch.
            steps: positions in the generated tokens.

        Returns:
            (n, v) float32; None if there are no steps, or no sequence was inside a mask at one of them.
        """
        if not steps or any(step not in self._steps for step in steps):
            return None
        return code_probabilities(torch.stack([self._steps[step][sequence] for step in steps]))
