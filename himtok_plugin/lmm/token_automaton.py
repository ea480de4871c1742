"""Automata over the characters of an answer, lifted to the tokens of a text tokenizer.

Purpose: say for a whole batch at once which tokens may come next, from the tokens alone. A token is a map from states
to states; maps compose, so the state after n tokens takes log2(n) steps for all sequences together, nothing is kept
between the steps of a generation, and beams may change places. Does not know how masks are counted, of models and of
ms-swift.
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
        characters: those that are told apart.
        steps: for each state, the state after each of `characters` and, last, after any other character. The state
            beyond these is that of a text no legal answer begins with.
        may_start: states in which a mask may begin.
        may_stop: states in which the answer may be over.
        after_mask: state in which a mask leaves the text.
        only_text: whether a token without text, such as an image's, is illegal; else it changes nothing.
    """

    characters: str
    steps: tuple[tuple[int, ...], ...]
    may_start: frozenset[int]
    may_stop: frozenset[int]
    after_mask: int = 0
    only_text: bool = False

    @property
    def dead(self) -> int:
        return len(self.steps)


def free_text() -> TextGrammar:
    """Any text that does not spell a mask token: the state counts how much of `<|mt_` has just been read."""
    characters = MASK_TOKEN_PREFIX
    steps = []
    for read, wanted in enumerate(characters):
        # "<" stands only at the prefix's beginning, so a wrong character leaves nothing to go on with.
        after = [read + 1 if c == wanted else int(c == characters[0]) for c in characters]
        steps.append((*after, 0))
    states = frozenset(range(len(steps)))
    return TextGrammar(characters, tuple(steps), may_start=states, may_stop=states)


def labelled_masks() -> TextGrammar:
    """Lines of `label: MASK`; a label holds no line break, no colon, no "<" and does not begin with a space."""
    nothing, line, label, colon, ready, done, dead = range(7)
    begins, goes_on = (dead, dead, dead, dead, dead, label), (dead, dead, colon, dead, label, label)
    steps = {
        nothing: begins,
        line: begins,
        label: goes_on,
        colon: (dead, dead, dead, dead, ready, dead),
        ready: (dead,) * 6,
        done: (line, dead, dead, dead, dead, dead),
    }
    return TextGrammar(
        characters="\n\r:< ",
        steps=tuple(steps[state] for state in range(dead)),
        may_start=frozenset({ready}),
        may_stop=frozenset({nothing, done}),
        after_mask=done,
        only_text=True,
    )


class TokenAutomaton:
    """A `TextGrammar` over tokens.

    Args:
        grammar: over characters.
        texts: of each token, None for one that writes no text of its own.
        vocabulary: where the mask tokens stand.
        stop_ids: tokens that end an answer.

    Raises:
        ValueError: the tokens cannot write what the grammar asks for.

    Attributes:
        allowed: (S + 1, V) bool, whether a token may come in a state, outside masks; of the dead state, all may: such a
            sequence is over or lost, and must not come down to no token at all.
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
        maps[mask_ids] = np.arange(dead + 1)  # inside a mask the text stands still
        maps[vocabulary.end_id] = grammar.after_mask
        allowed[mask_ids] = False
        states = np.arange(dead + 1)
        allowed[vocabulary.start_id] = np.isin(states, list(grammar.may_start))
        allowed[stops] = np.isin(states, list(grammar.may_stop))
        stuck = [state for state in range(dead) if not allowed[:, state].any()]
        if stuck:
            raise ValueError(f"text tokenizer: no token goes on from state {stuck[0]} of the grammar of answers")
        allowed[:, dead] = True
        unknown = np.full((1, dead + 1), dead) if grammar.only_text else states[None]
        self.allowed = torch.from_numpy(np.ascontiguousarray(allowed.T))
        self._maps = torch.from_numpy(np.concatenate([maps, unknown]).astype(np.uint8))

    def to(self, device: torch.device) -> TokenAutomaton:
        """Itself, its tables on the device."""
        if self.allowed.device != device:
            self.allowed, self._maps = self.allowed.to(device), self._maps.to(device)
        return self

    def state(self, tokens: Tensor) -> Tensor:
        """(b, n) int64 tokens of the answers so far -> (b,) int64 states."""
        if tokens.shape[1] == 0:
            return tokens.new_zeros(len(tokens))
        maps = self._maps[tokens.clamp(max=len(self._maps) - 1)].long()  # (b, n, states)
        while maps.shape[1] > 1:
            last = maps[:, maps.shape[1] // 2 * 2 :]  # of an odd number, one waits for the next round
            composed = maps[:, 1::2].gather(2, maps[:, : maps.shape[1] - last.shape[1] : 2])
            maps = torch.cat([composed, last], dim=1)
        return maps[:, 0, 0]


def _maps_of_texts(grammar: TextGrammar, texts: list[str]) -> np.ndarray:
    """(V, S + 1) int64: the state after each text, from each state."""
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
    """What each token writes after another one; None for special tokens and ids without one."""
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    size = max(len(tokenizer), max(added, default=-1) + 1)
    ids = [i for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(size))) if token and i not in special]
    # Behind another token, since some tokenizers write no space at the beginning of a text.
    first = tokenizer.encode("a", add_special_tokens=False)[-1]
    before = tokenizer.decode([first])
    written = tokenizer.batch_decode([[first, i] for i in ids])
    texts: list[str | None] = [None] * size
    for i, text in zip(ids, written, strict=True):
        texts[i] = text.removeprefix(before)
    return texts
