"""The logits of codes at mask positions, without a second gradient of the size of all logits.

The mask loss needs a few of an LMM's logits. `gather_mask_logits` gathers them. For logits from a `LogitTap`, its
gradient is sparse and is added in place to the gradient of the next-token loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def gather_mask_logits(logits: Tensor, code_ids: slice, positions: Tensor) -> Tensor:
    """Gather the logits of the codes at some positions.

    For logits that come from a `LogitTap`, the gradient is sparse and is added to their other gradients. For other
    logits, autograd creates a dense gradient of their size.

    Args:
        logits: (b, n, V) of any float dtype, over the whole vocabulary.
        code_ids: ids of the codes.
        positions: (m,) int64 indices into the b * n positions.

    Returns:
        (m, v) in the logits' dtype.
    """
    if _is_tapped(logits):
        return _GatherWithSparseGradient.apply(logits, code_ids, positions)
    return _gather(logits, code_ids, positions)


def _gather(logits: Tensor, code_ids: slice, positions: Tensor) -> Tensor:
    # The codes are selected first, so that the copy is as wide as the codebook instead of the vocabulary.
    return logits[..., code_ids].flatten(0, 1).index_select(0, positions)


def _is_tapped(logits: Tensor) -> bool:
    return isinstance(logits.grad_fn, _DenseGradient._backward_cls)


class _GatherWithSparseGradient(torch.autograd.Function):
    """`_gather` with a sparse gradient.

    Autograd adds a dense gradient that arrives later in place, and computes gradients in reverse order of the forward
    pass. The loss on all logits should therefore be computed before the mask loss.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, code_ids: slice, positions: Tensor) -> Tensor:
        ctx.shape, ctx.code_ids = logits.shape, code_ids
        ctx.save_for_backward(positions)
        return _gather(logits, code_ids, positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (positions,) = ctx.saved_tensors
        length = ctx.shape[1]
        columns = torch.arange(ctx.code_ids.start, ctx.code_ids.stop, device=positions.device)
        where = ((positions // length)[:, None], (positions % length)[:, None], columns)
        indices = torch.stack([index.expand_as(gradient) for index in where]).flatten(1)
        # Checking the indices would wait for the device.
        sparse = torch.sparse_coo_tensor(indices, gradient.flatten(), ctx.shape, check_invariants=False)
        return sparse, None, None


class _DenseGradient(torch.autograd.Function):
    """Identity that makes a sparse gradient dense, because few operations accept sparse gradients."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return logits.detach()  # autograd would not let a model change a view in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.to_dense() if gradient.is_sparse else gradient


class LogitTap:
    """Context manager that keeps an LMM's logits as its output layer returns them.

    Autograd can add the sparse gradient of the mask loss to the gradient of the next-token loss only if both losses use
    the same tensor. Models may cast the logits to float32 after the output layer, so the tensor is taken there:

        with tap:
            outputs = lmm(...)
            gathered = gather_mask_logits(tap.find_tapped_logits(outputs.logits), code_ids, positions)

    Args:
        output_layer: module whose forward pass returns the logits, (b, n, V).
    """

    def __init__(self, output_layer: nn.Module):
        self._open = False
        self._logits: Tensor | None = None
        self._version = 0
        output_layer.register_forward_hook(self._keep)

    def __enter__(self) -> LogitTap:
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._open, self._logits = False, None  # released early, as they are the largest tensor of a step

    def _keep(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if not self._open or torch.compiler.is_compiling() or not isinstance(output, Tensor) or output.ndim != 3:
            return None
        if not output.requires_grad:  # in evaluation, or if the LMM is frozen
            return None
        self._logits = _DenseGradient.apply(output)
        self._version = self._logits._version
        return self._logits

    def find_tapped_logits(self, logits: Tensor) -> Tensor:
        """Return the tapped logits if `logits` (b, n, V) are the same or a cast of them, otherwise `logits`.

        The latter applies to models that scale or change their logits after the output layer, and to models on several
        devices, whose logits accelerate moves to the first one: codes and targets are there as well.
        """
        tapped = self._logits
        if tapped is None or tapped.shape != logits.shape or tapped._version != self._version:
            return logits
        if tapped.device != logits.device:
            return logits
        source = logits.grad_fn
        if source is not None and type(source).__name__.startswith("ToCopyBackward"):
            source = source.next_functions[0][0]
        return tapped if source is tapped.grad_fn else logits
