"""Generating mask text: only legal masks, and the code probabilities recorded on the way.

Two logits processors for transformers' `generate`. Both look at the tokens so far alone, at those of all sequences
together, and keep no state per sequence, so batches, beams and sampling need nothing special. Does not know of masks as
pictures and of ms-swift.
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
    """How far each sequence is into a mask, read off its newest tokens without waiting for the device.

    Args:
        vocabulary: where the mask tokens stand.
        num_mask_tokens: codes of a mask at most.
        prompt: (b, n) int64 tokens of the prompts, padded on the left, where `generate` does not know them because they
            go in as embeddings: a mask that a prompt opens is seen all the same.
    """

    def __init__(self, vocabulary: MaskVocabulary, num_mask_tokens: int, prompt: Tensor | None = None):
        self.vocabulary = vocabulary
        self.num_mask_tokens = num_mask_tokens
        # One token more than the longest run of codes is enough to see the start token before it.
        self.window = num_mask_tokens + 1
        self.prompt = None if prompt is None else prompt[:, -self.window :]

    def __call__(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Progress of each sequence.

        Args:
            input_ids: (b, n) int64 tokens so far; n may be 0 when the prompt went in as embeddings.

        Returns:
            inside (b,) bool: the next token belongs to a mask; codes (b,) int64: codes of that mask so far.
        """
        recent = input_ids[:, -self.window :]
        if self.prompt is not None and recent.shape[1] < self.window:
            copies = len(input_ids) // len(self.prompt)  # beams and several answers stand beside each other
            recent = torch.cat([self.prompt.repeat_interleave(copies, 0), recent], dim=1)[:, -self.window :]
        recent = recent.flip(1)
        first, size = self.vocabulary.first_code_id, self.vocabulary.codebook_size
        is_code = (recent >= first) & (recent < first + size)
        codes = is_code.long().cumprod(dim=1).sum(dim=1)
        padded = torch.nn.functional.pad(recent, (0, 1), value=-1)
        before = padded.gather(1, codes[:, None]).squeeze(1)
        return before == self.vocabulary.start_id, codes


class MaskGrammar(LogitsProcessor):
    """Keeps generation to legal mask text.

    Inside a mask: one code at least, `num_mask_tokens` at most, then the end token. Outside: no code and no end token,
    and as many masks as asked for. An answer that runs into the limit of its length may end within a mask.

    Args:
        vocabulary: where the mask tokens stand.
        num_mask_tokens: codes of a mask at most.
        prompt: as of `MaskProgress`.
        prompt_length: how many of the tokens that `generate` shows are the prompt's, whose masks do not count.
        text: what may stand outside masks; None: any token.
        min_masks, max_masks: before so many masks are closed no token of `stop_ids` is allowed, after so many no
            start token.
        stop_ids: tokens that end an answer.
        max_new_tokens: length of an answer at most. The masks that are still owed are begun while there is room for
            whole ones. None: they come when the model begins them.
        early_stop: a mask ends once the normalised entropy of its next code is at least this, see
            `normalised_entropy`. None: never.
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
            raise ValueError("stop_ids: got none, expected one to end an answer of labelled masks with")
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
        """(b, n) tokens so far, (b, V) scores -> (b, V) scores, -inf where a token is not allowed next."""
        inside, codes = self.progress(input_ids)
        columns = torch.arange(scores.shape[1], device=scores.device)
        allowed = torch.where(
            inside[:, None],
            self._within(codes, scores, columns),
            self._outside(input_ids[:, self.prompt_length :], columns),
        )
        return scores.masked_fill(~allowed, float("-inf"))

    def _within(self, codes: Tensor, scores: Tensor, columns: Tensor) -> Tensor:
        """(b, V) bool: what may come next inside a mask of (b,) codes so far."""
        more = codes < self.num_mask_tokens
        if self.early_stop is not None:
            settled = normalised_entropy(scores[:, self.vocabulary.code_ids]) >= self.early_stop
            more = more & ~(settled & (codes > 0))
        is_end = columns == self.vocabulary.end_id
        return (self._is_code(columns) & more[:, None]) | (is_end & (codes > 0)[:, None])

    def _outside(self, answer: Tensor, columns: Tensor) -> Tensor:
        """(b, V) bool: what may come next outside masks, after the answers' (b, n) tokens so far."""
        is_start, is_stop = columns == self.vocabulary.start_id, self._is_stop(columns)
        closed = (answer == self.vocabulary.end_id).sum(1)
        if self.text is None:
            allowed = ~(self._is_code(columns) | (columns == self.vocabulary.end_id)).expand(len(answer), -1)
            may_start = torch.ones_like(closed, dtype=torch.bool)
        else:
            text = self.text.to(answer.device)
            state, known = text.state(answer), text.allowed.shape[1]
            # Matrices are wider than the vocabulary; where an answer is nothing but text, their last columns are none.
            width = len(columns)
            rest = (~is_start & (not text.grammar.only_text))[known:].expand(len(answer), -1)
            allowed = torch.cat([text.allowed[state, :width], rest], dim=1)
            may_start = text.allowed[state, self.vocabulary.start_id]
        if self.max_masks is not None:
            enough = closed >= self.max_masks
            allowed = allowed & ~(is_start & enough[:, None])
            if self.text is not None and self.text.grammar.only_text:
                over = enough & (state == self.text.grammar.after_mask)  # another line would owe a mask
                allowed = allowed & (is_stop | ~over[:, None])
        if self.min_masks:
            allowed = allowed & ~(is_stop & (closed < self.min_masks)[:, None])
            if self.max_new_tokens is not None:
                owed = (self.min_masks - closed).clamp(min=0)
                whole = self.num_mask_tokens + 2
                left = self.max_new_tokens - answer.shape[1]
                now = (owed > 0) & (left <= owed * whole + 1) & may_start  # one more for the end of the answer
                allowed = torch.where(now[:, None], is_start, allowed)
        return allowed

    def _is_code(self, columns: Tensor) -> Tensor:
        codes = self.vocabulary.code_ids
        return (columns >= codes.start) & (columns < codes.stop)

    def _is_stop(self, columns: Tensor) -> Tensor:
        found = torch.zeros_like(columns, dtype=torch.bool)
        for stop in self.stop_ids:  # a few; a tensor of them would have to be copied to the device
            found |= columns == stop
        return found


def normalised_entropy(logits: Tensor) -> Tensor:
    """How little a model knows of the next code: entropy of its code probabilities over that of all codes alike.

    Codes go from coarse to fine. Where the next one could be almost any, it and those after it would draw detail that
    the model does not see, and the mask of the codes so far is about as good. A model that is sure of itself is left
    alone. What it costs and saves depends on the checkpoint: examples/04_fewer_tokens.py measures it beside fixed
    numbers of tokens, which did better on the one measured here.

    Args:
        logits: (..., v) any float dtype: the code columns only.

    Returns:
        (...) float32 in [0, 1]; of a single code always 0.
    """
    probabilities = code_probabilities(logits)
    return torch.special.entr(probabilities).sum(-1) / max(math.log(logits.shape[-1]), 1e-6)


class CodeProbabilityRecorder(LogitsProcessor):
    """Keeps the code columns of the logits of every step in which some sequence is inside a mask.

    Must stand before `MaskGrammar` and before temperature, so that it sees what the model said.
    """

    def __init__(self, vocabulary: MaskVocabulary, num_mask_tokens: int, prompt: Tensor | None = None):
        self.vocabulary = vocabulary
        self.progress = MaskProgress(vocabulary, num_mask_tokens, prompt)
        self._prompt_length: int | None = None
        self._steps: dict[int, Tensor] = {}  # step -> (b, v) logits

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1]
        inside, _ = self.progress(input_ids)
        if inside.any():  # generation waits for the device at every step anyway
            self._steps[input_ids.shape[1] - self._prompt_length] = scores[:, self.vocabulary.code_ids].clone()
        return scores

    def probabilities(self, sequence: int, steps: list[int]) -> Tensor | None:
        """(n, v) float32 code probabilities of one sequence at the given generated positions.

        None if one of them was not inside a mask when it was generated.
        """
        if not steps or any(step not in self._steps for step in steps):
            return None
        return code_probabilities(torch.stack([self._steps[step][sequence] for step in steps]))
