"""generation.py: a real `generate` writes legal mask text, and recorded code probabilities are the model's own."""

import math

import pytest
import torch
from transformers import LogitsProcessorList, Qwen2Config, Qwen2ForCausalLM

from himtok_plugin.hierarchical_loss import code_probabilities
from himtok_plugin.lmm.generation import CodeProbabilityRecorder, MaskGrammar, normalised_entropy
from himtok_plugin.lmm.token_automaton import TokenAutomaton, labelled_masks_grammar
from himtok_plugin.lmm.vocabulary import MaskVocabulary

END_OF_TEXT = 0
VOCABULARY = MaskVocabulary(start_id=6, end_id=7, first_code_id=8, codebook_size=12)
MASK_TOKENS = 4
PROMPT = torch.tensor([[1, 2, 3]])


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,  # at the usual 0.02 all tokens are about equally likely, unlike in trained models
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        tie_word_embeddings=False,
    )
    return Qwen2ForCausalLM(config).eval()


def generate(model, processors, prompt=PROMPT, **options):
    torch.manual_seed(1)
    options = {"max_new_tokens": 40, "do_sample": True, "temperature": 1.0, "top_k": 0, **options}
    if "inputs_embeds" not in options:
        options["input_ids"] = prompt
    given = options.get("inputs_embeds", prompt)
    return model.generate(
        attention_mask=torch.ones(given.shape[:2], dtype=torch.int64),
        logits_processor=LogitsProcessorList(processors),
        **options,
    )


def masks_of(ids: list[int]) -> tuple[list[list[int]], bool, list[int]]:
    """Closed masks, whether one is still open at the end, and stray mask tokens."""
    closed, current, stray = [], None, []
    for token in ids:
        is_code = token >= VOCABULARY.first_code_id
        if current is None:
            if token == VOCABULARY.start_id:
                current = []
            elif is_code or token == VOCABULARY.end_id:
                stray.append(token)
        elif token == VOCABULARY.end_id:
            closed.append(current)
            current = None
        elif is_code:
            current.append(token - VOCABULARY.first_code_id)
        else:
            stray.append(token)
    return closed, current is not None, stray


@pytest.mark.parametrize("limit", [1, 3, MASK_TOKENS])
def test_sampled_text_is_legal_mask_text(model, limit):
    prompt = PROMPT.expand(512, -1)
    ids = generate(model, [MaskGrammar(VOCABULARY, limit)], prompt)[:, prompt.shape[1] :].tolist()
    lengths = []
    for sequence in ids:
        closed, _, stray = masks_of(sequence)
        assert not stray
        lengths += [len(codes) for codes in closed]
    assert len(lengths) > 200
    assert min(lengths) >= 1 and max(lengths) == limit


def test_without_the_grammar_the_same_model_writes_illegal_text(model):
    prompt = PROMPT.expand(64, -1)
    ids = generate(model, [], prompt)[:, prompt.shape[1] :].tolist()
    assert any(masks_of(sequence)[2] for sequence in ids)


def test_mask_opened_by_the_prompt_is_continued(model):
    prompt = torch.tensor([[1, VOCABULARY.start_id, 9, 10]]).expand(64, -1)
    ids = generate(model, [MaskGrammar(VOCABULARY, MASK_TOKENS)], prompt, max_new_tokens=3).tolist()
    for sequence in ids:
        closed, is_open, stray = masks_of(sequence)
        assert not stray and not is_open
        assert 2 <= len(closed[0]) <= MASK_TOKENS


def test_beams_are_legal_mask_text(model):
    prompt = PROMPT.expand(8, -1)
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 24}
    for sampled in (True, False):
        ids = generate(model, [MaskGrammar(VOCABULARY, MASK_TOKENS)], prompt, do_sample=sampled, **options)
        for sequence in ids[:, prompt.shape[1] :].tolist():
            closed, _, stray = masks_of(sequence)
            assert not stray and all(1 <= len(codes) <= MASK_TOKENS for codes in closed)


def test_embedded_prompts_are_legal_and_recorded(model):
    embedded = model.get_input_embeddings()(PROMPT.expand(64, -1))
    recorder = CodeProbabilityRecorder(VOCABULARY, MASK_TOKENS)
    ids = generate(model, [recorder, MaskGrammar(VOCABULARY, MASK_TOKENS)], inputs_embeds=embedded.detach())
    assert not any(masks_of(sequence)[2] for sequence in ids.tolist())
    check_recorded(model, recorder, PROMPT, ids)


def check_recorded(model, recorder, prompt, generated):
    """Compare with a forward pass over prompt and answer."""
    checked = 0
    for row, answer in enumerate(generated):
        steps = (answer >= VOCABULARY.first_code_id).nonzero().flatten()
        if not len(steps):
            continue
        full = torch.cat([prompt[0], answer])[None]
        with torch.no_grad():
            logits = model(full).logits[0, prompt.shape[1] - 1 + steps]
        expected = code_probabilities(logits[:, VOCABULARY.code_ids])
        recorded = recorder.probabilities(row, steps.tolist())
        torch.testing.assert_close(recorded, expected, rtol=1e-4, atol=1e-5)
        checked += len(steps)
    assert checked > 50


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_recorded_probabilities_are_those_of_a_forward_pass(model, temperature):
    recorder = CodeProbabilityRecorder(VOCABULARY, MASK_TOKENS)
    prompt = PROMPT.expand(64, -1)
    processors = [recorder, MaskGrammar(VOCABULARY, MASK_TOKENS)]
    ids = generate(model, processors, prompt, temperature=temperature)[:, prompt.shape[1] :]
    check_recorded(model, recorder, PROMPT, ids)


def test_positions_outside_masks_were_not_recorded(model):
    recorder = CodeProbabilityRecorder(VOCABULARY, MASK_TOKENS)
    generate(model, [recorder, MaskGrammar(VOCABULARY, MASK_TOKENS)], PROMPT, max_new_tokens=1)
    assert recorder.probabilities(0, [0]) is None
    assert recorder.probabilities(0, []) is None


def test_scores_of_allowed_tokens_are_unchanged():
    scores = torch.randn(2, 24)  # wider than the vocabulary: embedding matrices are padded
    ids = torch.tensor([[1, 1, 1], [1, VOCABULARY.start_id, 9]])
    allowed = MaskGrammar(VOCABULARY, MASK_TOKENS)(ids, scores.clone())
    outside = [*range(7), 20, 21, 22, 23]
    inside = [VOCABULARY.end_id, *range(8, 20)]
    for row, columns in ((0, outside), (1, inside)):
        kept = allowed[row] > float("-inf")
        assert kept.nonzero().flatten().tolist() == sorted(columns)
        assert torch.equal(allowed[row][kept], scores[row][kept])


def counts_of(ids) -> list[int]:
    """Closed masks of each sequence; no stray tokens."""
    found = [masks_of(sequence) for sequence in ids.tolist()]
    assert not any(stray for _, _, stray in found)
    return [len(closed) for closed, _, _ in found]


def grammar_with(**options):
    return MaskGrammar(VOCABULARY, MASK_TOKENS, prompt_length=PROMPT.shape[1], stop_ids=(END_OF_TEXT,), **options)


def has_ended(ids) -> torch.Tensor:
    return (ids == END_OF_TEXT).any(1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_answers_have_exactly_the_required_number_of_masks(model, temperature):
    prompt = PROMPT.expand(256, -1)
    grammar = grammar_with(min_masks=2, max_masks=2)
    ids = generate(model, [grammar], prompt, temperature=temperature, max_new_tokens=60)[:, PROMPT.shape[1] :]
    counts = torch.tensor(counts_of(ids))
    assert has_ended(ids).float().mean() > 0.5
    assert (counts[has_ended(ids)] == 2).all() and counts.max() == 2


def test_missing_masks_are_started_while_whole_masks_fit(model):
    prompt = PROMPT.expand(256, -1)
    grammar = grammar_with(min_masks=3, max_masks=3, max_new_tokens=24)
    ids = generate(model, [grammar], prompt, max_new_tokens=24)[:, PROMPT.shape[1] :]
    assert counts_of(ids) == [3] * 256
    # If whole masks do not fit, the answer is truncated like any other.
    grammar = grammar_with(min_masks=3, max_masks=3, max_new_tokens=8)
    ids = generate(model, [grammar], prompt, max_new_tokens=8)[:, PROMPT.shape[1] :]
    assert max(counts_of(ids)) < 3


@pytest.mark.parametrize("most", [0, 1])
def test_the_maximum_number_of_masks_is_kept(model, most):
    prompt = PROMPT.expand(256, -1)
    ids = generate(model, [grammar_with(max_masks=most)], prompt)[:, PROMPT.shape[1] :]
    counts = counts_of(ids)
    assert max(counts) == most and min(counts) == 0
    assert ((ids == VOCABULARY.start_id).sum(1) <= most).all()


def test_masks_of_the_prompt_do_not_count(model):
    prompt = torch.tensor([[1, VOCABULARY.start_id, 9, VOCABULARY.end_id, 2]]).expand(64, -1)
    options = {"prompt_length": 5, "stop_ids": (END_OF_TEXT,), "max_new_tokens": 20}
    grammar = MaskGrammar(VOCABULARY, MASK_TOKENS, min_masks=1, max_masks=1, **options)
    ids = generate(model, [grammar], prompt, max_new_tokens=20)[:, 5:]
    assert counts_of(ids) == [1] * 64


def test_beams_keep_to_the_number_of_masks(model):
    prompt = PROMPT.expand(8, -1)
    grammar = grammar_with(min_masks=1, max_masks=1, max_new_tokens=24)
    options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 24, "do_sample": False}
    assert counts_of(generate(model, [grammar], prompt, **options)[:, PROMPT.shape[1] :]) == [1] * 32


def step(grammar, logits, codes: int) -> list[int]:
    """Tokens that are allowed after a number of codes, for these logits of the codes."""
    scores = torch.zeros(1, 20)
    scores[0, VOCABULARY.code_ids] = logits
    ids = torch.tensor([[1, VOCABULARY.start_id, *range(8, 8 + codes)]])
    return (grammar(ids, scores)[0] > float("-inf")).nonzero().flatten().tolist()


def test_early_stop_ends_a_mask_whose_next_code_is_unknown():
    grammar = grammar_with(early_stop=0.8)
    unknown, known = torch.zeros(12), torch.eye(12)[3] * 20
    assert step(grammar, unknown, 2) == [VOCABULARY.end_id]
    assert step(grammar, known, 2) == [VOCABULARY.end_id, *range(8, 20)]
    assert step(grammar, unknown, 0) == [*range(8, 20)]  # a mask has one code at least
    assert step(grammar, known, MASK_TOKENS) == [VOCABULARY.end_id]


def test_early_stop_makes_masks_shorter_and_keeps_them_legal(model):
    prompt = PROMPT.expand(256, -1)
    lengths = []
    for threshold in (None, 0.5):
        ids = generate(model, [grammar_with(early_stop=threshold)], prompt)[:, PROMPT.shape[1] :]
        counts_of(ids)
        closed = [codes for sequence in ids.tolist() for codes in masks_of(sequence)[0]]
        lengths.append(sum(map(len, closed)) / len(closed))
    assert lengths[1] < lengths[0]


def test_entropy_is_0_of_a_certain_and_1_of_an_unknown_code():
    logits = torch.stack([torch.eye(12)[0] * 100, torch.zeros(12), 50 * (torch.arange(12) < 6).float()])
    expected = torch.tensor([0, 1, math.log(6) / math.log(12)])
    torch.testing.assert_close(normalised_entropy(logits), expected)
    assert normalised_entropy(torch.zeros(3, 1)).tolist() == [0, 0, 0]


def test_labelled_masks_need_a_token_to_stop_with():
    texts = ["a", ":", " ", "\n", "b", "c", *["x"] * 14]
    text = TokenAutomaton(labelled_masks_grammar(), texts, VOCABULARY)
    with pytest.raises(ValueError, match="stop_ids"):
        MaskGrammar(VOCABULARY, MASK_TOKENS, text=text, max_masks=1)
