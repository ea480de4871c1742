"""Hundreds of answers sampled from an untrained model, thousands in the slow tests, as text: none is malformed."""

import re

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer, LogitsProcessorList

from himtok_plugin.lmm.generation import MaskGrammar
from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl
from himtok_plugin.lmm.token_automaton import TokenAutomaton, free_text_grammar, labelled_masks_grammar, token_texts
from himtok_plugin.lmm.vocabulary import MaskVocabulary, extend_embeddings, extend_tokenizer
from himtok_plugin.mask_text import answer_regex, text_to_codes

CODES, MASK_TOKENS, LENGTH, BATCH = 12, 4, 40, 500
# The text tokenizer has pieces of mask tokens in its vocabulary, so that plain tokens can spell a mask token.
TEXTS = ["Segment the red circle and the blue square.", "cat: dog: red circle:\n", *["<|mt_ <|mt <| mt_ mt_1|> |>"] * 5]
PROMPTS = ["Segment it.", "The red circle, and beside it the blue square.", "<|mt_start|><|mt_1|><|mt_end|> again", "a"]
LIMITS = {
    "anything": {},
    "exactly two": {"min_masks": 2, "max_masks": 2},
    "at most one": {"max_masks": 1},
    "none": {"max_masks": 0},
    "labels": {"min_masks": 1, "max_masks": 2, "labels": True},
}


@pytest.fixture(scope="module")
def lmm(tmp_path_factory):
    folder = build_tiny_internvl(tmp_path_factory.mktemp("lmm"), TEXTS, "nano")
    model, tokenizer = AutoModelForImageTextToText.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    extend_embeddings(model, extend_tokenizer(tokenizer, CODES), len(tokenizer))
    return model.eval(), tokenizer, MaskVocabulary.of(tokenizer, CODES)


def processor(lmm, prompt_length, min_masks=0, max_masks=None, labels=False):
    _, tokenizer, vocabulary = lmm
    stops = (tokenizer.eos_token_id,)
    text = TokenAutomaton(
        labelled_masks_grammar() if labels else free_text_grammar(), token_texts(tokenizer), vocabulary, stops
    )
    return MaskGrammar(
        vocabulary,
        MASK_TOKENS,
        prompt_length=prompt_length,
        text=text,
        min_masks=min_masks,
        max_masks=max_masks,
        stop_ids=stops,
        max_new_tokens=LENGTH,
    )


class Speller:
    """Raises the scores of plain tokens that spell mask tokens, of the start token and of the end of an answer."""

    def __init__(self, lmm):
        _, tokenizer, vocabulary = lmm
        self.pieces = [tokenizer.convert_tokens_to_ids(piece) for piece in "<|mt_"]
        self.often = torch.tensor([self.pieces[0], vocabulary.start_id, tokenizer.eos_token_id])

    def __call__(self, input_ids, scores):
        scores = scores.index_fill(1, self.often, 3.0)
        for piece, following in zip(self.pieces, self.pieces[1:], strict=False):
            scores[input_ids[:, -1] == piece, following] = 8.0
        return scores


@torch.no_grad()
def sampled(lmm, processors, prompts, seed, **options):
    """Answers as (text, whether it has an end)."""
    model, tokenizer, _ = lmm
    torch.manual_seed(seed)
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "max_new_tokens": LENGTH, **options}
    ids = model.generate(**inputs, logits_processor=LogitsProcessorList(processors), **options)
    answers = ids[:, inputs["input_ids"].shape[1] :]
    ended = (answers == tokenizer.eos_token_id).any(1).tolist()
    # As servers do; special tokens between plain ones must not matter.
    return list(zip(tokenizer.batch_decode(answers, skip_special_tokens=True), ended, strict=True))


def malformed(text: str, ended: bool, pattern, min_masks=0, max_masks=None, **_) -> bool:
    """Whether an answer breaks the grammar; one that is cut by its length may end within a mask."""
    spans = text_to_codes(text, CODES, MASK_TOKENS)
    if ended:
        return not pattern.fullmatch(text) or not all(span.complete for span in spans)
    cut = [span for span in spans if not span.complete]
    too_many = max_masks is not None and len(spans) > max_masks
    return too_many or bool(cut) and (cut != spans[-1:] or spans[-1].end != len(text))


def check(lmm, limits, count, other_processors=()):
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(min(count, BATCH))]
    length = lmm[1](prompts, padding=True, return_tensors="pt")["input_ids"].shape[1]
    processors = [*other_processors, processor(lmm, length, **limits)]
    rest = {name: limits[name] for name in limits if name != "labels"}
    pattern = re.compile(answer_regex(CODES, MASK_TOKENS, labels=limits.get("labels", False), **rest))
    masks = finished = 0
    for seed in range(-(-count // BATCH)):
        for text, ended in sampled(lmm, processors, prompts, seed):
            assert not malformed(text, ended, pattern, **limits), text
            masks += len(text_to_codes(text, CODES, MASK_TOKENS))
            finished += ended
    return masks, finished


@pytest.mark.parametrize("name", LIMITS)
def test_none_of_a_batch_of_sampled_answers_is_malformed(lmm, name):
    masks, _ = check(lmm, LIMITS[name], BATCH)
    assert (masks == 0) == (name == "none")


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITS)
def test_none_of_10000_sampled_answers_is_malformed(lmm, name):
    masks, _ = check(lmm, LIMITS[name], 10_000)
    assert (masks == 0) == (name == "none")


@pytest.mark.parametrize("name", LIMITS)
def test_plain_tokens_do_not_spell_mask_tokens(lmm, name):
    masks, finished = check(lmm, LIMITS[name], BATCH, [Speller(lmm)])
    assert finished > BATCH / 25


def test_without_a_text_grammar_plain_tokens_do_spell_mask_tokens(lmm):
    grammar = MaskGrammar(lmm[2], MASK_TOKENS)
    texts = [text for text, _ in sampled(lmm, [Speller(lmm), grammar], ["a"] * BATCH, 0)]
    assert any("<|mt_" in re.sub(r"<\|mt_(start|end|[0-9]+)\|>", "", text) for text in texts)


@pytest.mark.parametrize("temperature", [0.1, 10.0])
def test_grammar_holds_at_any_temperature(lmm, temperature):
    prompts = PROMPTS * 25
    length = lmm[1](prompts, padding=True, return_tensors="pt")["input_ids"].shape[1]
    pattern = re.compile(answer_regex(CODES, MASK_TOKENS, 1, 2))
    grammar = processor(lmm, length, min_masks=1, max_masks=2)
    for text, ended in sampled(lmm, [grammar], prompts, 0, temperature=temperature):
        assert not malformed(text, ended, pattern, 1, 2)
        assert text_to_codes(text, CODES, MASK_TOKENS)


def test_grammar_holds_with_beams(lmm):
    prompts = PROMPTS * 4
    length = lmm[1](prompts, padding=True, return_tensors="pt")["input_ids"].shape[1]
    pattern = re.compile(answer_regex(CODES, MASK_TOKENS, 1, 2, labels=True))
    grammar = processor(lmm, length, min_masks=1, max_masks=2, labels=True)
    for sample in (True, False):
        for text, ended in sampled(lmm, [grammar], prompts, 0, num_beams=3, do_sample=sample):
            assert not malformed(text, ended, pattern, 1, 2)
