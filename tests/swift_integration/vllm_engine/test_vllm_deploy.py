"""`swift deploy --infer_backend vllm` answers as `swift infer` with the default engine does, also in streams."""

import pytest
from chat import ask, ask_all
from mask_differences import count_different_pixels
from runs import read_rows
from vllm_servers import MAX_NEW_TOKENS, deployed_on_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

MOST_DIFFERENT_PIXELS = 64  # of 64 scenes, decoded from 5 alternatives
STREAMED = 8


@pytest.fixture(scope="module")
def server(checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("deployed")
    with deployed_on_vllm(root, model=checkpoint, max_new_tokens=MAX_NEW_TOKENS, temperature=0) as address:
        yield address


@pytest.fixture(scope="module")
def rows(scene_rows):
    return read_rows(scene_rows)


def check_segments(segments: list[dict], expected: list[dict]) -> int:
    """Compare segments with the masks of a result; return the number of pixels that differ."""
    scores = [mask["score"] for mask in expected]
    assert [segment["score"] for segment in segments] == pytest.approx(scores, abs=0.05)
    return count_different_pixels(segments, expected)


def test_answers_have_text_and_segments_of_the_default_engine(server, rows, default_answers):
    different = 0
    for answer, expected in zip(ask_all(server, rows), default_answers, strict=True):
        choice = answer.choices[0]
        assert choice.message.content == expected["response"] and choice.logprobs is None
        different += check_segments(choice.message.segments, expected["masks"])
    assert different <= MOST_DIFFERENT_PIXELS


def test_streams_have_the_same_segments(server, rows, default_answers):
    for row, expected in zip(rows[:STREAMED], default_answers, strict=False):
        chunks = [chunk.choices[0] for chunk in ask(server, row, stream=True)]
        assert "".join(chunk.delta.content or "" for chunk in chunks) == expected["response"]
        assert all(chunk.logprobs is None for chunk in chunks)
        segments = [segment for chunk in chunks for segment in chunk.delta.segments or []]
        check_segments(segments, expected["masks"])


def test_requested_log_probabilities_are_returned_as_requested(server, rows):
    choice = ask(server, rows[0], logprobs=True, top_logprobs=2).choices[0]
    assert {len(entry.top_logprobs) for entry in choice.logprobs.content} == {2}
    assert all(segment["score"] is not None for segment in choice.message.segments)
