"""The logits of codes at mask positions, without a second gradient of the size of all logits.

The mask loss needs a few of an LMM's logits. `gather_mask_logits` gathers them. For logits from a `LogitTap`, its
gradient is sparse and is added in place to the gradient of the next-token loss. It can be changed before that, with
the gradient of the next-token loss at hand: gradient_balance.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def gather_mask_logits(
    logits: Tensor,
    code_ids: slice,
    positions: Tensor,
    balance: Callable[[Tensor, Tensor], Tensor] | None = None,
    origin: Tensor | None = None,
) -> Tensor:
    """Gather the logits of the codes at some positions.

    For logits that come from a `LogitTap`, the gradient is sparse and is added to their other gradients. For other
    logits, autograd creates a dense gradient of their size.

    Args:
        logits: (b, n, V) of any float dtype, over the whole vocabulary.
        code_ids: ids of the codes.
        positions: (m,) int64 indices into the b * n positions.
        balance: called in the backward pass with two gradients at the gathered logits, (m, v) each: that of the
            gathered logits, and that of everything else that uses `origin`. It returns the gradient to use for the
            first one.
        origin: tensor that `logits` are a copy of, see `LogitTap.find_origin`. None: `logits`.

    Returns:
        (m, v) in the logits' dtype.

    Raises:
        RuntimeError: in the backward pass, if there is a `balance` and nothing else uses `origin`.
    """
    if balance is not None and logits.requires_grad:
        held = _find_held_gradients(logits if origin is None else origin)
        return _GatherAndHold.apply(logits, code_ids, positions, balance, held)
    if _is_tap(logits.grad_fn):
        return _GatherWithSparseGradient.apply(logits, code_ids, positions)
    return _gather(logits, code_ids, positions)


def _gather(logits: Tensor, code_ids: slice, positions: Tensor) -> Tensor:
    # The codes are selected first, so that the copy is as wide as the codebook instead of the vocabulary.
    return logits[..., code_ids].flatten(0, 1).index_select(0, positions)


def _scatter(gradient: Tensor, shape: torch.Size, code_ids: slice, positions: Tensor) -> Tensor:
    """Return the sparse gradient of `_gather`: (m, v) -> (b, n, V)."""
    columns = torch.arange(code_ids.start, code_ids.stop, device=positions.device)
    where = ((positions // shape[1])[:, None], (positions % shape[1])[:, None], columns)
    indices = torch.stack([index.expand_as(gradient) for index in where]).flatten(1)
    # Checking the indices would wait for the device.
    return torch.sparse_coo_tensor(indices, gradient.flatten(), shape, check_invariants=False)


def _is_tap(node: Any) -> bool:
    """Whether a node of the graph is that of tapped logits."""
    return isinstance(node, _DenseGradient._backward_cls)


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
        return _scatter(gradient, ctx.shape, ctx.code_ids, positions), None, None


@dataclass
class _HeldGradient:
    """A gradient (m, v) of gathered logits that waits for the other gradients of all logits."""

    gradient: Tensor
    code_ids: slice
    positions: Tensor
    balance: Callable[[Tensor, Tensor], Tensor]

    def release(self, others: Tensor | None) -> Tensor:
        """Return the sparse gradient to add to `others` (b, n, V)."""
        if others is None:
            raise RuntimeError(
                "gradient balance: got logits without a gradient of the next-token loss, expected a model that "
                "computes its loss from the logits that it returns"
            )
        positions = self.positions.to(others.device)  # those of a model on several devices are on the last one
        other = others[positions // others.shape[1], positions % others.shape[1], self.code_ids]
        balanced = self.balance(self.gradient.to(others.device), other)
        return _scatter(balanced.to(others.dtype), others.shape, self.code_ids, positions)


class _GatherAndHold(torch.autograd.Function):
    """`_gather` whose gradient is held back, and added where all other gradients of the logits have arrived."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, code_ids: slice, positions: Tensor, balance: Any, held: list[_HeldGradient]
    ) -> Tensor:
        ctx.code_ids, ctx.balance, ctx.held = code_ids, balance, held
        ctx.save_for_backward(positions)
        return _gather(logits, code_ids, positions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        (positions,) = ctx.saved_tensors
        ctx.held.append(_HeldGradient(gradient, ctx.code_ids, positions, ctx.balance))
        return (None,) * 5


def _find_held_gradients(logits: Tensor) -> list[_HeldGradient]:
    """Return the list for gradients that are to be added to the gradient of `logits`.

    The place is before all casts and moves to other devices: there the gradient of the next-token loss arrives, whether
    that loss uses the logits before or after the cast.
    """
    node: Any = logits.grad_fn
    index = logits.output_nr
    while _is_cast(node):
        node, index = node.next_functions[0]
    if _is_tap(node):
        return node.held
    held: list[_HeldGradient] = []

    def add_held(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        others = gradients[index]
        total = others
        while held:
            one = held.pop().release(others)
            total = one if total is None else total + one
        return (*gradients[:index], total, *gradients[index + 1 :])

    node.register_prehook(add_held)
    return held


def _is_cast(node: Any) -> bool:
    """Whether a node of the graph is a cast to another dtype or a move to another device."""
    return node is not None and type(node).__name__.startswith("ToCopyBackward")


class _DenseGradient(torch.autograd.Function):
    """Identity that makes a sparse gradient dense, because few operations accept sparse gradients.

    Its argument is given twice: a held gradient goes back by the second way, so that autograd adds the dense one to it,
    in place where nothing else uses that.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, same: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.held = []
        return logits.detach()  # autograd would not let a model change a view in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        if gradient is not None and gradient.is_sparse:
            gradient = gradient.to_dense()
        added = None
        while ctx.held:
            one = ctx.held.pop().release(gradient)
            added = one if added is None else added + one
        return added, gradient


class LogitTap:
    """Context manager that keeps an LMM's logits as its output layer returns them.

    Autograd can add the sparse gradient of the mask loss to the gradient of the next-token loss only if both losses use
    the same tensor. Models may cast the logits to float32 after the output layer, so the tensor is taken there:

        with tap:
            outputs = lmm(...)
            gathered = gather_mask_logits(tap.find_tapped_logits(outputs.logits), code_ids, positions)

    Args:
        output_layer: module whose forward pass returns the logits, (b, n, V).
        lmm: the LMM before anything wraps it, for `find_origin`.
    """

    def __init__(self, output_layer: nn.Module, lmm: nn.Module | None = None):
        self._open = False
        self._logits: Tensor | None = None
        self._version = 0
        self._returned: Tensor | None = None
        output_layer.register_forward_hook(self._keep)
        if lmm is not None:
            lmm.register_forward_hook(self._keep_returned)

    def __enter__(self) -> LogitTap:
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        # Released early, as they are the largest tensors of a step.
        self._open, self._logits, self._returned = False, None, None

    def _keep(self, layer: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if not self._open or torch.compiler.is_compiling() or not isinstance(output, Tensor) or output.ndim != 3:
            return None
        if not output.requires_grad:  # in evaluation, or if the LMM is frozen
            return None
        self._logits = _DenseGradient.apply(output, output)
        self._version = self._logits._version
        return self._logits

    def _keep_returned(self, lmm: nn.Module, inputs: tuple, output: Any) -> None:
        if self._open and not torch.compiler.is_compiling():
            self._returned = getattr(output, "logits", None)

    def find_origin(self, logits: Tensor) -> Tensor:
        """Return the logits as the LMM itself returned them, if known, of which `logits` (b, n, V) are a copy.

        Wrappers for several processes copy outputs, while the next-token loss may be computed inside the LMM.
        """
        returned = self._returned
        return logits if returned is None or returned.shape != logits.shape else returned

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
        source: Any = logits.grad_fn
        if _is_cast(source):
            source = source.next_functions[0][0]
        return tapped if source is tapped.grad_fn else logits
