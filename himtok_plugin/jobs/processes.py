"""The processes of one run under torchrun and their communication, which uses gloo on the CPU.

Outside torchrun there is one process, and no process group is created.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

# The first process to finish may wait hours for the last one. torchrun detects processes that died.
TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: number of this process, 0 <= rank < count.
        count: number of processes. For more than one, instances come from `from_environment`.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    @contextmanager
    def from_environment(cls) -> Iterator[Processes]:
        """Join the process group that torchrun's variables (RANK, WORLD_SIZE, …) describe; a context manager."""
        count = environment_int("WORLD_SIZE", 1)
        if count == 1:
            yield cls()
            return
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=TIMEOUT)
        try:
            yield cls(dist.get_rank(), count)
        finally:
            dist.destroy_process_group()

    def run_on_first(self, function: Callable[[], Any]) -> Any:
        """Call a function in process 0 only, and return its result, or raise its ValueError or OSError, in all."""
        if self.count == 1:
            return function()
        import torch.distributed as dist

        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = function()
            except (ValueError, OSError) as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def sum(self, values: list[int]) -> list[int]:
        """Sum each of the values over all processes; waits for all of them."""
        if self.count == 1:
            return values
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Collect a picklable value from each process, in the order of ranks, in all processes."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        everywhere: list[Any] = [None] * self.count
        dist.all_gather_object(everywhere, value)
        return everywhere


def environment_int(name: str, default: int) -> int:
    """Read an integer from an environment variable, such as torchrun's RANK.

    Raises:
        ValueError: its value is not an integer.
    """
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r} in the environment, expected an integer") from error
