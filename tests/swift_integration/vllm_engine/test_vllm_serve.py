"""`vllm serve CHECKPOINT`, which knows nothing of this package, answers as ms-swift's own engine does."""

import re

import pytest
from chat import ask_all
from mask_differences import count_different_pixels
from runs import read_rows
from vllm_servers import MAX_NEW_TOKENS, served_by_vllm

from himtok_plugin import MaskTokenizer
from himtok_plugin.lmm.token_logprobs import code_probabilities_from_logprobs
from himtok_plugin.mask_text import answer_regex, text_to_codes
from himtok_plugin.prediction.predictor import Answer, MaskPredictor

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

MOST_DIFFERENT_PIXELS = 16  # of 64 scenes; one was measured


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    with served_by_vllm(tmp_path_factory.mktemp("served"), checkpoint) as address:
        yield address


@pytest.fixture(scope="module")
def rows(scene_rows):
    return read_rows(scene_rows)


@pytest.fixture(scope="module")
def mask_tokenizer(checkpoint):
    return MaskTokenizer.from_pretrained(checkpoint / "mask_tokenizer")


@pytest.fixture(scope="module")
def greedy(server, rows):
    """Greedy answers with the log-probabilities of 20 alternatives."""
    options = {"temperature": 0, "max_tokens": MAX_NEW_TOKENS, "logprobs": True, "top_logprobs": 20}
    return [answer.choices[0] for answer in ask_all(server, rows, **options)]


def test_greedy_text_is_that_of_the_default_engine(greedy, default_answers):
    assert [choice.message.content for choice in greedy] == [row["response"] for row in default_answers]


def test_log_probabilities_decode_softly_to_the_same_masks(greedy, default_answers, mask_tokenizer):
    answers = []
    for choice, expected in zip(greedy, default_answers, strict=True):
        codes, probabilities = code_probabilities_from_logprobs(
            choice.logprobs.content, mask_tokenizer.config.codebook_size
        )
        assert codes == [code for mask in expected["masks"] for code in mask["codes"]]
        answers.append(Answer(choice.message.content, (64, 64), probabilities if codes else None))
    different = 0
    for masks, expected in zip(MaskPredictor(mask_tokenizer)(answers), default_answers, strict=True):
        different += count_different_pixels([mask.to_dict() for mask in masks], expected["masks"])
        scores = [mask["score"] for mask in expected["masks"]]
        assert [mask.score for mask in masks] == pytest.approx(scores, abs=0.01)
    assert different <= MOST_DIFFERENT_PIXELS


def test_regular_expression_keeps_answers_at_temperature_two_legal(server, rows, mask_tokenizer):
    config = mask_tokenizer.config
    pattern = answer_regex(config.codebook_size, config.num_mask_tokens)

    def count_legal(**options) -> tuple[int, int]:
        """Legal answers, and answers that were not cut."""
        # No seed: requests with one have ended vLLM 0.32 on CPUs (docs/inference_and_serving.md).
        choices = [a.choices[0] for a in ask_all(server, rows, temperature=2, max_tokens=MAX_NEW_TOKENS, **options)]
        ended = [choice.message.content for choice in choices if choice.finish_reason == "stop"]
        for text in ended:
            if re.fullmatch(pattern, text):
                assert all(span.complete for span in text_to_codes(text, config.codebook_size, config.num_mask_tokens))
        return sum(re.fullmatch(pattern, text) is not None for text in ended), len(ended)

    legal, ended = count_legal(extra_body={"structured_outputs": {"regex": pattern}})
    assert legal == ended > len(rows) * 0.8
    free, _ = count_legal()
    assert free < len(rows) / 2
