"""The processes of one run under torchrun: who this one is, and the little that they have to tell each other.

Contract: outside torchrun there is one process, and nothing here starts anything. They talk over gloo, through the CPU,
whatever the work itself runs on. Does not know what is being worked on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

# The fastest process waits here for the slowest one, which may have hours left; torchrun notices the dead ones.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process's number, `0 <= rank < count`; only ones made by `started` can talk to each other."""

    rank: int = 0
    count: int = 1

    @classmethod
    @contextmanager
    def started(cls) -> Iterator[Processes]:
        """The processes that the environment speaks of (RANK, WORLD_SIZE and the address, as torchrun sets them)."""
        count = environment_int("WORLD_SIZE", 1)
        if count == 1:
            yield cls()
            return
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield cls(dist.get_rank(), count)
        finally:
            dist.destroy_process_group()

    def first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in process 0, in all of them; an error there is an error in all of them."""
        if self.count == 1:
            return make()
        import torch.distributed as dist

        answer: list[Any] = [None, None]
        if self.rank == 0:
            try:
                answer[0] = make()
            except (ValueError, OSError) as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        return answer[0]

    def sums(self, values: list[int]) -> list[int]:
        """Sums over all processes; returns when all of them have come here."""
        if self.count == 1:
            return values
        import torch
        import torch.distributed as dist

        total = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What every process brings, in their order, in all of them; values travel pickled."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        everywhere: list[Any] = [None] * self.count
        dist.all_gather_object(everywhere, value)
        return everywhere


def environment_int(name: str, default: int) -> int:
    """What the environment says of this process, such as torchrun's RANK.

    Raises:
        ValueError: it is no integer.
    """
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{name}: got {text!r} in the environment, expected an integer") from error
