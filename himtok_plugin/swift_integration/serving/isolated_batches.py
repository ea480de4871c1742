"""Batches of streams in which each request fails alone, and in which no prompt takes the room of others.

An engine raises one error for a whole batch: a prompt that the model cannot process, too little memory for all of them.
As `answering.failed_answers.infer_apart` does for complete answers, the halves of such a batch are then run apart, and
theirs in turn, until the error belongs to one request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any


class UnequalPromptsError(ValueError):
    """The longest prompt of a batch would take from the others the room for their answers."""


def stream_in_parts(answer: Callable[[Sequence[Any]], Any], requests: Sequence[Any]) -> Iterator[list[Any]]:
    """Answer a batch of streams; yields the next chunk, an error or None for each request.

    Args:
        answer: returns an iterator of lists with the next chunk or None for each request.
        requests: the batch. An error after the first chunk belongs to all of them, because a stream cannot begin again.
    """
    has_begun = False
    try:
        for chunks in answer(requests):
            has_begun = has_begun or any(chunk is not None and not isinstance(chunk, Exception) for chunk in chunks)
            yield chunks
        return
    except Exception as error:
        if has_begun or len(requests) == 1:
            yield [_forget_frames(error)] * len(requests)
            return
    middle = len(requests) // 2
    for chunks in stream_in_parts(answer, requests[:middle]):
        yield [*chunks, *[None] * (len(requests) - middle)]
    for chunks in stream_in_parts(answer, requests[middle:]):
        yield [*[None] * middle, *chunks]


def check_room(num_tokens: Sequence[int], max_tokens: int | None, max_model_len: int | None) -> None:
    """Check that every request of a batch has about the room for its answer that it would have alone.

    An engine gives all requests of a batch the room that the longest prompt leaves.

    Args:
        num_tokens: of each prompt.
        max_tokens: what the requests ask for; None: as much as there is.
        max_model_len: of the model.
    Raises:
        UnequalPromptsError: because of others, a request would get less than it asks for, or less than half its room.
    """
    if max_model_len is None or len(num_tokens) < 2:
        return
    shared, alone = max_model_len - max(num_tokens), max_model_len - min(num_tokens)
    asked = alone if max_tokens is None else min(max_tokens, alone)
    is_cut = shared < asked and (asked == max_tokens or shared < asked / 2)
    if is_cut:
        raise UnequalPromptsError(
            f"max_tokens: got prompts of {min(num_tokens)} to {max(num_tokens)} tokens in a batch"
        )


def _forget_frames(error: Exception) -> Exception:
    return error.with_traceback(None)  # frames would keep the batch's tensors until the client has its answer
