"""The de-tokenizer's gradient is clipped by itself, so that a large one does not shrink the LMM's.

transformers' trainer clips the gradients of all parameters as one, through its accelerator. There the parameters are
parted in two, because not all supported releases of the trainer clip in a method of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn


class SeparateClipping:
    """Clips some parameters by a norm of their own, and the others without them.

    Args:
        parameters: trained, unsharded parameters of the model.
        max_norm: largest norm of their gradients together, > 0.
        report: called in each optimizer step with this norm before it is clipped, ().
    """

    def __init__(self, parameters: list[nn.Parameter], max_norm: float, report: Callable[[Tensor], None]):
        self.parameters = parameters
        self.max_norm = max_norm
        self.report = report

    def attach(self, accelerator: Accelerator) -> None:
        """Replace `clip_grad_norm_` of an accelerator.

        Raises:
            ValueError: it shards parameters or leaves clipping to an engine.
        """
        kind = accelerator.distributed_type
        if kind in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            raise ValueError(
                f"detokenizer_max_grad_norm: got {self.max_norm} with {kind.value}, which clips all gradients as one, "
                "expected None"
            )
        accelerator.clip_grad_norm_ = functools.partial(self._clip, accelerator)

    def _clip(
        self, accelerator: Accelerator, parameters: Iterable[nn.Parameter], max_norm: float, norm_type: float = 2
    ) -> Tensor:
        own = {id(p) for p in self.parameters}
        others = [p for p in parameters if id(p) not in own]
        # The class's method, which ms-swift replaces while it trains. It undoes the loss scaling of all gradients.
        norm = type(accelerator).clip_grad_norm_(accelerator, others, max_norm, norm_type)
        own_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_norm, norm_type)
        self.report(own_norm)
        if norm.isnan() or own_norm.isnan():  # as ms-swift, which skips the update of all parameters then
            for parameter in (*others, *self.parameters):
                parameter.grad = None
        return norm
