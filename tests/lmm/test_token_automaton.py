"""token_automaton.py: tokens step through an automaton as the characters that they write would."""

import itertools
import random
import re

import pytest
import torch

from himtok_plugin.lmm.tiny_internvl import train_tokenizer
from himtok_plugin.lmm.token_automaton import TokenAutomaton, free_text_grammar, labelled_masks_grammar, token_texts
from himtok_plugin.lmm.vocabulary import MaskVocabulary, extend_tokenizer
from himtok_plugin.mask_text import answer_regex

PIECES = ["<", "|", "m", "t", "_", "<|", "|mt", "mt_", "<|mt", "x<", "t_<|m", "a", " ", "\n", ": ", ":", "cat", "\ndog"]
MASK = ["<|mt_start|>", "<|mt_end|>", "<|mt_0|>", "<|mt_1|>"]
TEXTS = [*PIECES, *MASK, None]
VOCABULARY = MaskVocabulary(
    start_id=len(PIECES), end_id=len(PIECES) + 1, first_code_id=len(PIECES) + 2, codebook_size=2
)
STOP = len(TEXTS) - 1


def automaton(grammar):
    return TokenAutomaton(grammar, TEXTS, VOCABULARY, (STOP,))


def walked(grammar, text: str) -> int:
    """State after a text, one character at a time."""
    state = 0
    for character in text:
        if state == grammar.dead:
            return state
        place = grammar.characters.find(character)
        state = grammar.steps[state][place]  # -1, not found, is the last: any other character
    return state


@pytest.mark.parametrize("grammar", [free_text_grammar(), labelled_masks_grammar()])
def test_state_after_tokens_is_that_after_their_characters(grammar):
    tokens = automaton(grammar)
    draw = random.Random(0)
    for length in range(8):
        batch = [[draw.randrange(len(PIECES)) for _ in range(length)] for _ in range(200)]
        states = tokens.state(torch.tensor(batch, dtype=torch.int64).reshape(200, length)).tolist()
        assert states == [walked(grammar, "".join(PIECES[i] for i in row)) for row in batch]


def test_free_text_never_spells_a_mask_token():
    tokens = automaton(free_text_grammar())
    for ids in itertools.product(range(len(PIECES)), repeat=3):
        text = "".join(PIECES[i] for i in ids)
        state = tokens.state(torch.tensor([ids[:-1]]))[0]
        if "<|mt_" in "".join(PIECES[i] for i in ids[:-1]):
            continue
        assert bool(tokens.allowed[state, ids[-1]]) == ("<|mt_" not in text)


def test_a_special_token_does_not_reset_a_partial_match():
    ids = [PIECES.index("<|mt"), STOP, STOP]
    tokens = automaton(free_text_grammar())
    assert not tokens.allowed[tokens.state(torch.tensor([ids]))[0], PIECES.index("_")]


def test_free_text_starts_again_after_a_mask():
    begun = PIECES.index("<|mt")
    ids = [begun, VOCABULARY.start_id, VOCABULARY.first_code_id, VOCABULARY.end_id]
    tokens = automaton(free_text_grammar())
    assert tokens.state(torch.tensor([ids])).tolist() == [0]
    assert tokens.state(torch.tensor([ids[:1]])).tolist() == [4]


def test_labelled_masks_allow_what_their_regular_expression_allows():
    grammar, tokens = labelled_masks_grammar(), automaton(labelled_masks_grammar())
    pattern = re.compile(answer_regex(2, 2, labels=True))
    whole = [VOCABULARY.start_id, VOCABULARY.first_code_id, VOCABULARY.end_id]
    seen = 0
    for count in range(4):
        for ids in itertools.product(range(len(PIECES)), repeat=count):
            answer = [*ids, *whole]
            state = tokens.state(torch.tensor([ids], dtype=torch.int64).reshape(1, count))[0]
            legal = bool(tokens.allowed[state, VOCABULARY.start_id]) and state != grammar.dead
            assert legal == bool(pattern.fullmatch("".join(TEXTS[i] for i in answer)))
            seen += legal
    assert seen > 10


def test_after_a_labelled_mask_come_a_line_break_or_the_end():
    tokens = automaton(labelled_masks_grammar())
    state = tokens.state(torch.tensor([[VOCABULARY.start_id, VOCABULARY.first_code_id, VOCABULARY.end_id]]))[0]
    allowed = tokens.allowed[state].nonzero().flatten().tolist()
    assert allowed == sorted([PIECES.index("\n"), PIECES.index("\ndog"), STOP])


def test_in_the_dead_state_every_token_is_allowed():
    tokens = automaton(labelled_masks_grammar())
    state = tokens.state(torch.tensor([[PIECES.index("<")], [STOP]]))
    assert tokens.allowed[state].all()


def test_tokens_that_cannot_write_the_grammar_are_refused():
    texts = [None if text in (": ", ":") else text for text in TEXTS]
    with pytest.raises(ValueError, match="no token continues"):
        TokenAutomaton(
            labelled_masks_grammar(), [text and text.replace(" ", "") for text in texts], VOCABULARY, (STOP,)
        )


def test_texts_of_a_real_tokenizer_are_what_it_writes():
    tokenizer = train_tokenizer(["Segment the cat: <mask>, the dog and <|mt as text.\n"] * 3, 400)
    extend_tokenizer(tokenizer, 12)
    texts = token_texts(tokenizer)
    assert len(texts) == len(tokenizer)
    for text in ("the dog", ": ", "<|mt as text", "a\n\nb", " cat"):
        assert "".join(texts[i] for i in tokenizer.encode(text, add_special_tokens=False)) == text
    assert texts[tokenizer.eos_token_id] is None
    assert texts[tokenizer.convert_tokens_to_ids("<|mt_3|>")] == "<|mt_3|>"
