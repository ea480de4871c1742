"""The regular expressions in the libraries that servers compile them with, on a real tokenizer."""

import random

import pytest
import torch

from himtok_plugin.lmm.generation import MaskGrammar
from himtok_plugin.lmm.tiny_internvl import train_tokenizer
from himtok_plugin.lmm.token_automaton import TokenAutomaton, free_text_grammar, labelled_masks_grammar, token_texts
from himtok_plugin.lmm.vocabulary import MaskVocabulary, extend_tokenizer
from himtok_plugin.mask_text import answer_regex, codes_to_text, mask_regex

V, K = 12, 4
MASK = codes_to_text([3, 11])
LEGAL = {
    "anything": ({}, ["", "No cat.", f"At {MASK}.", MASK * 3, f"日本 <|mt {MASK} <", "a\nb"]),
    "exactly two": ({"min_masks": 2, "max_masks": 2}, [MASK * 2, f"One {MASK}, two {MASK}."]),
    "at most one": ({"max_masks": 1}, ["", "none", f"x{MASK}"]),
    "none": ({"max_masks": 0}, ["", "There is no cat."]),
    "labels": ({"min_masks": 1, "labels": True}, [f"cat: {MASK}", f"cat: {MASK}\nред кот: {MASK}"]),
}
BROKEN = ["<|mt_start|>", "<|mt_3|>", "<|mt_end|>", MASK[:-10], MASK.replace("_11", "_12"), codes_to_text([0] * 5)]
ILLEGAL = {
    "anything": BROKEN,
    "exactly two": [*BROKEN, "", MASK, MASK * 3],
    "at most one": [*BROKEN, MASK * 2],
    "none": [*BROKEN, MASK],
    "labels": [*BROKEN, "", "cat", MASK, f"cat:{MASK}", f"cat: {MASK}.", f": {MASK}", f"cat: {MASK}dog: {MASK}"],
}


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["Segment the red circle: cat: dog:\n", *["<|mt_ <|mt <| mt_ |>"] * 4]
    tokenizer = train_tokenizer(texts, 400)
    extend_tokenizer(tokenizer, V)
    return tokenizer


class Xgrammar:
    """vLLM's and SGLang's default."""

    def __init__(self, tokenizer, pattern):
        xgrammar = pytest.importorskip("xgrammar")
        self.module = xgrammar
        self.eos = tokenizer.eos_token_id
        info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, stop_token_ids=[self.eos])
        self.size = info.vocab_size
        self.matcher = xgrammar.GrammarMatcher(xgrammar.GrammarCompiler(info).compile_regex(pattern))

    def accepts(self, ids) -> bool:
        self.matcher.reset()
        return all(self.matcher.accept_token(i) for i in [*ids, self.eos])

    def allowed(self, ids) -> set[int]:
        self.matcher.reset()
        assert all(self.matcher.accept_token(i) for i in ids)
        mask = self.module.allocate_token_bitmask(1, self.size)
        self.matcher.fill_next_token_bitmask(mask)
        bits = (mask[0][:, None] >> torch.arange(32)) & 1
        return set(bits.flatten()[: self.size].nonzero().flatten().tolist())


class Outlines:
    """vLLM's alternative, LMDeploy's default."""

    def __init__(self, tokenizer, pattern):
        outlines = pytest.importorskip("outlines_core")
        self.eos = tokenizer.eos_token_id
        texts = token_texts(tokenizer)
        known: dict[str, list[int]] = {}
        for i, text in enumerate(texts):
            if text and "\ufffd" not in text:
                known.setdefault(text, []).append(i)
        self.index = outlines.Index(pattern, outlines.Vocabulary(self.eos, known))

    def _state(self, ids):
        state = self.index.get_initial_state()
        for i in ids:
            state = None if state is None else self.index.get_next_state(state, i)
        return state

    def accepts(self, ids) -> bool:
        state = self._state(ids)
        return state is not None and self.index.is_final_state(state)

    def allowed(self, ids) -> set[int]:
        return set(self.index.get_allowed_tokens(self._state(ids)))


# outlines_core 0.2 loses tokens of one byte that lead from where an answer may end to where it may not, such as the
# line break between labelled masks: of "a(?:bc)?" it allows "bc" behind "a", and not "b".
CASES = [(kind, name) for kind in (Xgrammar, Outlines) for name in LEGAL if (kind, name) != (Outlines, "labels")]


@pytest.mark.parametrize(("library", "name"), CASES)
def test_libraries_accept_legal_answers_and_no_others(tokenizer, library, name):
    limits, legal = LEGAL[name]
    compiled = library(tokenizer, answer_regex(V, K, **limits))
    for text in legal:
        if library is Outlines and "日" in text:
            continue  # token_texts has no text for tokens that are parts of characters
        assert compiled.accepts(tokenizer.encode(text, add_special_tokens=False)), text
    for text in ILLEGAL[name]:
        assert not compiled.accepts(tokenizer.encode(text, add_special_tokens=False)), text


@pytest.mark.parametrize("library", [Xgrammar, Outlines])
def test_libraries_compile_a_mask_of_the_released_size(tokenizer, library):
    large = train_tokenizer(["a b c"], 300)
    extend_tokenizer(large, 1024)
    compiled = library(large, mask_regex(1024, 32))
    for count, legal in ((1, True), (32, True), (33, False)):
        text = "<|mt_start|>" + "<|mt_1023|>" * count + "<|mt_end|>"
        assert compiled.accepts(large.encode(text, add_special_tokens=False)) == legal


@pytest.mark.parametrize(("library", "name"), CASES)
def test_logits_processor_allows_what_the_library_allows(tokenizer, library, name):
    """Along random answers; only that a server's mask may also be spelled, character by character."""
    limits = dict(LEGAL[name][0])
    compiled = library(tokenizer, answer_regex(V, K, **limits))
    vocabulary, stop = MaskVocabulary.of(tokenizer, V), tokenizer.eos_token_id
    texts = token_texts(tokenizer)
    labels = limits.pop("labels", False)
    text = TokenAutomaton(labelled_masks_grammar() if labels else free_text_grammar(), texts, vocabulary, (stop,))
    grammar = MaskGrammar(vocabulary, K, text=text, stop_ids=(stop,), **limits)
    plain = {i for i, written in enumerate(texts) if written and written.isascii()} | {stop}
    own = set(vocabulary.ids()) | {stop}
    draw, likely = random.Random(0), own | {i for i, written in enumerate(texts) if written in (":", " ", "\n", ": ")}
    for _ in range(12):
        ids: list[int] = []
        for _ in range(25):
            scores = grammar(torch.tensor([ids], dtype=torch.int64).reshape(1, len(ids)), torch.zeros(1, len(texts)))
            ours = set((scores[0] > float("-inf")).nonzero().flatten().tolist()) & plain
            theirs = compiled.allowed(ids)
            assert ours <= theirs | {stop}
            assert ours & own - {stop} == theirs & own - {stop}
            assert (stop in ours) == compiled.accepts(ids)
            spelled = theirs & plain - ours - {stop}
            inside = vocabulary.start_id in ids and ids[::-1].index(vocabulary.start_id) < (
                ids[::-1].index(vocabulary.end_id) if vocabulary.end_id in ids else len(ids)
            )
            assert inside or all("<" in texts[i] or set(texts[i]) <= set("|mt_startend0123456789>") for i in spelled)
            choice = sorted((ours & likely or ours) if draw.random() < 0.6 else ours)
            ids.append(draw.choice(choice))
            if ids[-1] == stop:
                break
