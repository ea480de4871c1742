"""Batches of streams in which each fails alone, and prompts that would take the room of others."""

import pytest

from himtok_plugin.swift_integration.serving.isolated_batches import UnequalPromptsError, check_room, stream_in_parts


def stream_all_or_fail(requests):
    """An engine: two chunks per request; a request "bad" fails the batch, "late" does after the first chunk."""
    if "bad" in requests:
        raise RuntimeError("bad")
    yield [f"{request} 1" for request in requests]
    if "late" in requests:
        raise RuntimeError("late")
    yield [None if request == "short" else f"{request} 2" for request in requests]


def collect(requests) -> list[list]:
    """What each request gets."""
    got: list[list] = [[] for _ in requests]
    for chunks in stream_in_parts(stream_all_or_fail, requests):
        assert len(chunks) == len(requests)
        for one, chunk in zip(got, chunks, strict=True):
            if chunk is not None:
                one.append(str(chunk))
    return got


@pytest.mark.parametrize("place", range(5))
def test_only_the_bad_stream_fails(place):
    requests = ["a", "b", "short", "c"]
    requests.insert(place, "bad")
    for request, chunks in zip(requests, collect(requests), strict=True):
        good = [f"{request} 1"] if request == "short" else [f"{request} 1", f"{request} 2"]
        assert chunks == (["bad"] if request == "bad" else good)


def test_several_bad_streams_fail_alone():
    assert collect(["bad", "a", "bad", "bad"]) == [["bad"], ["a 1", "a 2"], ["bad"], ["bad"]]


def test_streams_that_have_begun_end_with_the_error():
    assert collect(["a", "late"]) == [["a 1", "late"], ["late 1", "late"]]


@pytest.mark.parametrize(
    ("num_tokens", "max_tokens", "is_cut"),
    [
        ([10, 90], 20, True),  # 10 tokens are left, alone there would be 90
        ([10, 90], None, True),
        ([10, 120], 5, True),  # no room at all
        ([10, 12], None, False),
        ([10, 60], 20, False),
        ([90], 20, False),
    ],
)
def test_prompts_that_take_the_room_of_others_are_run_apart(num_tokens, max_tokens, is_cut):
    if is_cut:
        with pytest.raises(UnequalPromptsError):
            check_room(num_tokens, max_tokens, 100)
    else:
        check_room(num_tokens, max_tokens, 100)
