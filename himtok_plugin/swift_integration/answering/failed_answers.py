"""Rows that `swift infer` cannot answer: each becomes a result with an `error`, and all others are answered.

Contract: `answer_rows` asks an engine and returns an answer for every row, a `FailedAnswer` where the row cannot be
read or used. Errors of the device end the run: with them, the rows that follow would fail as well. `FailureCount`
counts the failed rows of all processes and ends a run that has some with exit status 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from himtok_plugin.swift_integration.samples.failed_rows import describe_error
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn

R = TypeVar("R")


class FailedAnswer:
    """Stands in for ms-swift's response to a row that failed: an empty text.

    Attributes:
        error: the row's name and the reason, in one line.
    """

    def __init__(self, error: str) -> None:
        self.error = error
        self.choices = [SimpleNamespace(message=SimpleNamespace(content=""), logprobs=None)]


class GuardedStream:
    """The chunks of the answer to a row. The stream ends where its engine raises an error, which is kept.

    Args:
        column: the row's mask column. If it has an error, the engine is not asked.
        ask: returns the engine's chunks.

    Attributes:
        answer: what `ask` has returned.
        error: the row's name and the reason; None without an error so far.
    """

    def __init__(self, column: MaskColumn, ask: Callable[[], Iterable[Any]]) -> None:
        self.answer: Iterable[Any] = ()
        self.error = column.error
        self._name = column.name
        self._ask = ask

    def __iter__(self) -> Iterator[Any]:
        if self.error is not None:
            return
        try:
            self.answer = self._ask()
            yield from self.answer
        except torch.AcceleratorError:
            raise
        except Exception as error:  # engines, processors and image readers raise nearly any
            self.error = describe_error(self._name, error)


def get_column(row: dict[str, Any]) -> MaskColumn:
    """Return the mask column of a row, an empty one if it has none."""
    masks = row.get("masks")
    return MaskColumn.parse([] if masks is None else masks)


def infer_apart(ask: Callable[[list[Any]], list[R]], requests: Sequence[Any]) -> list[R | Exception]:
    """Ask for the answers to requests, so that a bad request does not fail others.

    After an error each half of the requests is asked for again, down to the bad ones: n requests with one bad one take
    about 2 log2(n) further calls.

    Args:
        ask: returns an answer per request, or raises an error because of any of them. An exception can be an answer.
        requests: any number.
    Returns:
        The answers in order; the error in place of an answer.
    """
    if not requests:
        return []
    try:
        return list(ask(list(requests)))
    except torch.AcceleratorError:
        raise
    except Exception as error:  # engines, processors and image readers raise nearly any
        if len(requests) == 1:
            return [error]
    half = len(requests) // 2
    return infer_apart(ask, requests[:half]) + infer_apart(ask, requests[half:])


def answer_rows(ask: Callable[[list[dict[str, Any]]], list[Any]], rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Answer rows; rows that fail get a `FailedAnswer`.

    Args:
        ask: see `infer_apart`.
        rows: of ms-swift's dataset. A row whose mask column has an error is not asked about.
    """
    columns = [get_column(row) for row in rows]
    usable = [row for row, column in zip(rows, columns, strict=True) if column.error is None]
    answers = iter(infer_apart(ask, usable))
    found = []
    for column in columns:
        answer = next(answers) if column.error is None else FailedAnswer(column.error)
        if isinstance(answer, Exception):
            answer = FailedAnswer(describe_error(column.name, answer))
        found.append(answer)
    return found


class FailureCount:
    """Counts the rows of a run and those that failed, in this process; `check` adds those of other processes."""

    def __init__(self) -> None:
        self.rows = 0
        self.errors: list[str] = []

    def add(self, error: str | None) -> None:
        """Count a row; its error is None if it has an answer."""
        self.rows += 1
        if error is not None:
            self.errors.append(error)

    def check(self, result_path: str | None) -> None:
        """End the first process with exit status 1 if a row of any process failed. All processes call this.

        The others return: a process that ended earlier with this status would make torchrun end the first one.

        Raises:
            SystemExit: with one line that counts the failed rows.
        """
        parts: list[Any] = [(self.rows, self.errors)]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, (self.rows, self.errors))
            if dist.get_rank() > 0:
                return
        rows, errors = sum(part[0] for part in parts), [error for part in parts for error in part[1]]
        if errors:
            where = f'; their results in {result_path} have an "error"' if result_path else ""
            message = f"error: {len(errors)} of {rows} rows could not be answered{where}. The first: {errors[0]}"
            raise SystemExit(f"{message}. --resume_result true tries them again")
