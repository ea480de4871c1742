"""The tap on an LMM's logits: a mask loss on a few code columns, without a gradient as wide as the vocabulary.

Contract: `mask_logits` gathers the logits that the mask loss needs; of logits that come from a `LogitTap`, its gradient
is sparse and is added in place to the one of the next-token loss.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def mask_logits(logits: Tensor, code_ids: slice, rows: Tensor) -> Tensor:
    """The logits that the mask loss looks at.

    Columns first: what is copied is as wide as the codebook, not as the vocabulary. Where `logits` come from a
    `LogitTap` the gradient is added to the one they have from elsewhere; otherwise autograd fills a gradient of the
    logits' own size with zeros for it.

    Args:
        logits: (b, n, V) any float dtype, over the whole vocabulary.
        code_ids: the columns of the codes.
        rows: (r,) int64 rows of the flattened (b * n, V) logits.

    Returns:
        (r, v) in the logits' dtype.
    """
    if _is_tapped(logits):
        return _SparseGradient.apply(logits, code_ids, rows)
    return _gather(logits, code_ids, rows)


def _gather(logits: Tensor, code_ids: slice, rows: Tensor) -> Tensor:
    return logits[..., code_ids].flatten(0, 1).index_select(0, rows)


def _is_tapped(logits: Tensor) -> bool:
    return isinstance(logits.grad_fn, _DenseGradient._backward_cls)


class _SparseGradient(torch.autograd.Function):
    """`_gather` whose gradient is a sparse tensor. Autograd adds a dense one that arrives after it in place, and runs
    backward what ran forward last: the loss on all logits should be computed before the one on these few."""

    @staticmethod
    def forward(ctx, logits: Tensor, code_ids: slice, rows: Tensor) -> Tensor:
        ctx.shape, ctx.code_ids = logits.shape, code_ids
        ctx.save_for_backward(rows)
        return _gather(logits, code_ids, rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        length = ctx.shape[1]
        columns = torch.arange(ctx.code_ids.start, ctx.code_ids.stop, device=rows.device)
        where = ((rows // length)[:, None], (rows % length)[:, None], columns)
        indices = torch.stack([index.expand_as(gradient) for index in where]).flatten(1)
        # Without the check of the indices, which would wait for the device.
        sparse = torch.sparse_coo_tensor(indices, gradient.flatten(), ctx.shape, check_invariants=False)
        return sparse, None, None


class _DenseGradient(torch.autograd.Function):
    """Identity. What leaves it in the backward pass is dense, although sparse gradients may have gone into the sum:
    few other operations take those."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        return logits.detach()  # no view, which autograd would not let a model change in place

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient.to_dense() if gradient.is_sparse else gradient


class LogitTap:
    """Holds an LMM's logits as they leave its output layer, while it is entered as a context.

    A mask loss uses a few of the logits, and its gradient belongs into the one that the next-token loss makes for all
    of them. Autograd can add it there only if both reach the same tensor before anything else, such as a cast to
    float32, comes between. So the output layer is tapped, and what it puts out is what `mask_logits` should be given:

        with tap:
            outputs = lmm(...)
            gathered = mask_logits(tap.logits_behind(outputs.logits), code_ids, rows)

    Args:
        output_layer: its forward pass returns the logits, (b, n, V).
    """

    def __init__(self, output_layer: nn.Module):
        self._open = False
        self._logits: Tensor | None = None
        self._version = 0
        output_layer.register_forward_hook(self._keep)

    def __enter__(self) -> LogitTap:
        self._open = True
        return self

    def __exit__(self, *_) -> None:
        self._open, self._logits = False, None  # held no longer than needed: they are the largest tensor of a step

    def _keep(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if not self._open or torch.compiler.is_compiling() or not isinstance(output, Tensor) or output.ndim != 3:
            return None
        if not output.requires_grad:  # evaluation, or nothing below the logits is trained
            return None
        self._logits = _DenseGradient.apply(output)
        self._version = self._logits._version
        return self._logits

    def logits_behind(self, logits: Tensor) -> Tensor:
        """The tapped logits where `logits` (b, n, V) are the same or a cast of them; else, as where a model scales its
        logits, `logits` themselves."""
        tapped = self._logits
        if tapped is None or tapped.shape != logits.shape or tapped._version != self._version:
            return logits
        made_by = logits.grad_fn
        if type(made_by).__name__.startswith("ToCopyBackward"):
            made_by = made_by.next_functions[0][0]
        return tapped if made_by is tapped.grad_fn else logits
