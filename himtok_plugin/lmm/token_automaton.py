"""Automata over characters, applied to the tokens of a text tokenizer: which tokens are allowed next.

Each token is a map from states to states. Maps can be composed, so the states of a whole batch after n tokens are
computed from the tokens alone in log2(n) steps. Nothing is stored between steps of generation, so beams may be
reordered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from himtok_plugin.mask_text import MASK_TOKEN_PREFIX

from .vocabulary import MaskVocabulary


@dataclass(frozen=True)
class TextGrammar:
    """An automaton over characters.

    Attributes:
        characters: those that lead to different states; all others are equivalent.
        steps: for each state, the next state for each of `characters` and, last, for any other character. One more
            state, `dead`, is that of a text which no legal answer begins with.
        may_start: states in which a mask may begin.
        may_stop: states in which the answer may end.
        after_mask: state after a mask.
        only_text: whether tokens without text, such as image tokens, are illegal; otherwise they do not change the
            state.
    """

    characters: str
    steps: tuple[tuple[int, ...], ...]
    may_start: frozenset[int]
    may_stop: frozenset[int]
    after_mask: int = 0
    only_text: bool = False

    @property
    def dead(self) -> int:
        """The state of a text that cannot become legal."""
        return len(self.steps)


def free_text_grammar() -> TextGrammar:
    """Any text without `<|mt_`; the state is the number of its characters that have just been read."""
    characters = MASK_TOKEN_PREFIX
    steps = []
    for read, wanted in enumerate(characters):
        # The prefix has its only "<" at the beginning, so any other wrong character leads back to state 0.
        after = [read + 1 if c == wanted else int(c == characters[0]) for c in characters]
        steps.append((*after, 0))
    states = frozenset(range(len(steps)))
    return TextGrammar(characters, tuple(steps), may_start=states, may_stop=states)


def labelled_masks_grammar() -> TextGrammar:
    """Lines `label: MASK`; a label contains no line break, colon or "<" and does not begin with a space."""
    empty, line, label, colon, ready, done, dead = range(7)
    steps = {
        empty: (dead, dead, dead, dead, dead, label),
        line: (dead, dead, dead, dead, dead, label),
        label: (dead, dead, colon, dead, label, label),
        colon: (dead, dead, dead, dead, ready, dead),
        ready: (dead,) * 6,
        done: (line, dead, dead, dead, dead, dead),
    }
    return TextGrammar(
        characters="\n\r:< ",
        steps=tuple(steps[state] for state in range(dead)),
        may_start=frozenset({ready}),
        may_stop=frozenset({empty, done}),
        after_mask=done,
        only_text=True,
    )


class TokenAutomaton:
    """A `TextGrammar` over tokens.

    Args:
        grammar: the grammar over characters.
        texts: text of each token, None for a token without text; see `token_texts`.
        vocabulary: ids of the mask tokens.
        stop_ids: tokens that end an answer.

    Raises:
        ValueError: no token continues some state of the grammar.

    Attributes:
        allowed: (S + 1, V) bool, whether a token is allowed in a state outside masks. In the dead state all are
            allowed, because generation fails if no token is.
    """

    def __init__(
        self,
        grammar: TextGrammar,
        texts: list[str | None],
        vocabulary: MaskVocabulary,
        stop_ids: tuple[int, ...] = (),
    ):
        self.grammar = grammar
        dead, size = grammar.dead, len(texts)
        maps = _maps_of_texts(grammar, [text or "" for text in texts])
        silent = np.array([not text for text in texts])
        mask_ids = [i for i in vocabulary.ids() if i < size]
        stops = [i for i in stop_ids if i < size]
        if grammar.only_text:
            maps[silent] = dead
            maps[stops] = dead
        else:
            maps[stops] = np.arange(dead + 1)
        allowed = maps != dead
        maps[mask_ids] = np.arange(dead + 1)  # the state does not change inside a mask
        maps[vocabulary.end_id] = grammar.after_mask
        allowed[mask_ids] = False
        states = np.arange(dead + 1)
        allowed[vocabulary.start_id] = np.isin(states, list(grammar.may_start))
        allowed[stops] = np.isin(states, list(grammar.may_stop))
        stuck = [state for state in range(dead) if not allowed[:, state].any()]
        if stuck:
            raise ValueError(f"text tokenizer: no token continues an answer in state {stuck[0]} of its grammar")
        allowed[:, dead] = True
        unknown = np.full((1, dead + 1), dead) if grammar.only_text else states[None]
        self.allowed = torch.from_numpy(np.ascontiguousarray(allowed.T))
        self._maps = torch.from_numpy(np.concatenate([maps, unknown]).astype(np.uint8))

    def to(self, device: torch.device) -> TokenAutomaton:
        """Move the tables to a device, in place, and return self."""
        if self.allowed.device != device:
            self.allowed, self._maps = self.allowed.to(device), self._maps.to(device)
        return self

    def state(self, tokens: Tensor) -> Tensor:
        """States after the answers' tokens so far: (b, n) int64 tokens -> (b,) int64."""
        if tokens.shape[1] == 0:
            return tokens.new_zeros(len(tokens))
        maps = self._maps[tokens.clamp(max=len(self._maps) - 1)].long()  # (b, n, states)
        while maps.shape[1] > 1:
            last = maps[:, maps.shape[1] // 2 * 2 :]  # the last of an odd number is composed in the next round
            composed = maps[:, 1::2].gather(2, maps[:, : maps.shape[1] - last.shape[1] : 2])
            maps = torch.cat([composed, last], dim=1)
        return maps[:, 0, 0]


def _maps_of_texts(grammar: TextGrammar, texts: list[str]) -> np.ndarray:
    """(V, S + 1) int64: the state after each text, starting in each state."""
    steps = np.array([*grammar.steps, (grammar.dead,) * (len(grammar.characters) + 1)])
    characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    classes = np.full(len(characters), len(grammar.characters))
    for i, character in enumerate(grammar.characters):
        classes[characters == ord(character)] = i
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    offsets = np.cumsum(lengths) - lengths
    maps = np.tile(np.arange(len(steps)), (len(texts), 1))
    for i in range(lengths.max(initial=0)):
        longer = lengths > i
        maps[longer] = steps[maps[longer], classes[offsets[longer] + i][:, None]]
    return maps


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str | None]:
    """Text of each token when it follows another token; None for special tokens and unused ids."""
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    size = max(len(tokenizer), max(added, default=-1) + 1)
    ids = [i for i, token in enumerate(tokenizer.convert_ids_to_tokens([*range(size)])) if token and i not in special]
    # Decoded after another token, because some tokenizers drop a space at the beginning of a text.
    first = tokenizer.encode("a", add_special_tokens=False)[-1]
    before = str(tokenizer.decode([first]))
    decoded = tokenizer.batch_decode([[first, i] for i in ids])
    texts: list[str | None] = [None] * size
    for i, text in zip(ids, decoded, strict=True):
        texts[i] = text.removeprefix(before)
    return texts
