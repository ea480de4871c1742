"""token_logprobs.py: log-probabilities of servers give the code probabilities of the model."""

import math
from types import SimpleNamespace

import pytest
import torch

from himtok_plugin.hierarchical_loss import code_probabilities
from himtok_plugin.lmm.token_logprobs import code_probabilities_from_logprobs
from himtok_plugin.mask_text import MASK_END, MASK_START, mask_token

V = 12
WORDS = ["a", "red", " circle", MASK_START, MASK_END]
TOKENS = [*WORDS, *(mask_token(code) for code in range(V))]


def entry(logits: torch.Tensor, chosen: int, k: int) -> dict:
    """As OpenAI writes it, of logits over `TOKENS`."""
    logprobs = logits.log_softmax(-1).tolist()
    best = sorted(range(len(TOKENS)), key=lambda i: -logprobs[i])[:k]
    top = [{"token": TOKENS[i], "logprob": logprobs[i], "bytes": list(TOKENS[i].encode())} for i in best]
    return {"token": TOKENS[chosen], "logprob": logprobs[chosen], "bytes": None, "top_logprobs": top}


@pytest.fixture
def logits():
    return 3 * torch.randn(4, len(TOKENS), generator=torch.Generator().manual_seed(0))


def answer(logits, k, codes=(3, 0, 11, 7)):
    begin = {"token": MASK_START, "logprob": -0.1, "top_logprobs": []}
    end = {"token": MASK_END, "logprob": -0.1, "top_logprobs": []}
    rows = [entry(row, len(WORDS) + code, k) for row, code in zip(logits, codes, strict=True)]
    return [{"token": "a", "logprob": -1.0}, begin, *rows, end]


def test_with_all_alternatives_they_are_the_models_own(logits):
    codes, probabilities = code_probabilities_from_logprobs(answer(logits, len(TOKENS)), V)
    assert codes == [3, 0, 11, 7]
    torch.testing.assert_close(probabilities, code_probabilities(logits[:, len(WORDS) :]))


@pytest.mark.parametrize("k", [1, 5, 8])
def test_few_alternatives_are_right_but_for_a_bounded_rest(logits, k):
    _, probabilities = code_probabilities_from_logprobs(answer(logits, k), V)
    full = code_probabilities(logits[:, len(WORDS) :])
    assert torch.allclose(probabilities.sum(1), torch.ones(4))
    for row, (found, true) in enumerate(zip(probabilities, full, strict=True)):
        known = found > 0
        torch.testing.assert_close(found[known], true[known] / true[known].sum())
        model = logits[row].softmax(-1)
        missing = model[len(WORDS) :][~known]
        bound = missing.sum() * model.sort(descending=True).values[k - 1]
        assert (missing**2).sum() <= bound + 1e-7


def test_generated_code_counts_though_it_is_no_alternative(logits):
    least = int(logits[0, len(WORDS) :].argmin())
    _, probabilities = code_probabilities_from_logprobs([entry(logits[0], len(WORDS) + least, 2)], V)
    assert probabilities[0, least] > 0


def test_objects_of_a_client_are_read_like_dicts(logits):
    def as_object(value):
        if isinstance(value, dict):
            return SimpleNamespace(**{name: as_object(part) for name, part in value.items()})
        return [as_object(part) for part in value] if isinstance(value, list) else value

    content = answer(logits, 5)
    codes, probabilities = code_probabilities_from_logprobs(as_object(content), V)
    expected = code_probabilities_from_logprobs(content, V)
    assert codes == expected[0] and torch.equal(probabilities, expected[1])


def test_without_alternatives_the_code_is_certain():
    codes, probabilities = code_probabilities_from_logprobs([{"token": mask_token(2), "logprob": -3.0}], V)
    assert codes == [2] and probabilities[0, 2] == 1


def test_minus_infinity_is_nothing_and_alone_the_code_is_certain():
    top = [{"token": mask_token(1), "logprob": -math.inf}, {"token": mask_token(2), "logprob": -1.0}]
    _, probabilities = code_probabilities_from_logprobs([{**top[1], "top_logprobs": top}], V)
    assert probabilities[0].tolist() == [float(code == 2) for code in range(V)]
    _, probabilities = code_probabilities_from_logprobs([{"token": mask_token(3), "logprob": -math.inf}], V)
    assert probabilities[0, 3] == 1


@pytest.mark.parametrize("token", ["", "<|mt_", mask_token(V), "<|mt_03|>", mask_token(1) * 2, f"a{mask_token(1)}"])
def test_tokens_that_are_no_code_are_passed_over(token):
    codes, probabilities = code_probabilities_from_logprobs([{"token": token, "logprob": -1.0}], V)
    assert codes == [] and probabilities.shape == (0, V)


def test_a_space_in_front_of_a_token_is_no_part_of_it():
    assert code_probabilities_from_logprobs([{"token": f" {mask_token(5)}", "logprob": -1.0}], V)[0] == [5]


def test_without_tokens_there_are_no_probabilities():
    codes, probabilities = code_probabilities_from_logprobs([], V)
    assert codes == [] and probabilities.shape == (0, V)


@pytest.mark.parametrize("wrong", [None, "much", math.nan, math.inf, True])
def test_logprobs_that_are_no_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="logprobs of token 1: got logprob"):
        code_probabilities_from_logprobs([{"token": "a"}, {"token": mask_token(1), "logprob": wrong}], V)


def test_entries_without_a_token_are_refused():
    with pytest.raises(ValueError, match="logprobs of token 0: got token None"):
        code_probabilities_from_logprobs([{"logprob": -1.0}], V)
