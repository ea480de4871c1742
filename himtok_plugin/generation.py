"""Generating mask text: only legal masks, and the code probabilities recorded on the way.

Two logits processors for transformers' `generate`. Both look at the newest tokens alone and keep no state per sequence,
so batches, beams and sampling need nothing special. Does not know of masks as pictures and of ms-swift.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .hierarchical_loss import code_probabilities
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

    Inside a mask: one code at least, `num_mask_tokens` at most, then the end token. Outside: no code and no end token.
    """

    def __init__(self, vocabulary: MaskVocabulary, num_mask_tokens: int, prompt: Tensor | None = None):
        self.vocabulary = vocabulary
        self.num_mask_tokens = num_mask_tokens
        self.progress = MaskProgress(vocabulary, num_mask_tokens, prompt)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(b, n) tokens so far, (b, V) scores -> (b, V) scores, -inf where a token is not allowed next."""
        inside, codes = self.progress(input_ids)
        full = inside & (codes >= self.num_mask_tokens)
        columns = torch.arange(scores.shape[1], device=scores.device)
        vocabulary = self.vocabulary
        is_code = (columns >= vocabulary.first_code_id) & (
            columns < vocabulary.first_code_id + vocabulary.codebook_size
        )
        is_end = columns == vocabulary.end_id
        is_mask = is_code | is_end
        code_allowed, end_allowed = inside & ~full, inside & (codes > 0)
        allowed = torch.where(
            is_mask[None, :],
            (is_code[None, :] & code_allowed[:, None]) | (is_end[None, :] & end_allowed[:, None]),
            ~inside[:, None],
        )
        return scores.masked_fill(~allowed, float("-inf"))


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
