"""Stage 2: LMM logits at mask positions -> code probabilities -> masks -> coarse-to-fine loss.

Works on the code columns of the logit rows that predict mask tokens (`mask_logits`); nothing as wide as the vocabulary
is copied, and with a `LogitTap` no gradient so wide is made. Source: arXiv 2503.13026, section 3.3. Does not know of
text, tokenizers and trainers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .mask_tokenizer.modeling import MaskTokenizer
from .mask_tokenizer.reconstruction_loss import (
    DICE_WEIGHT,
    coarse_sigma,
    coarse_target,
    draw_levels,
    mask_bce,
    mask_dice,
)

__all__ = [
    "HierarchicalMaskLoss",
    "LogitTap",
    "MaskLosses",
    "coarse_target",
    "code_probabilities",
    "mask_bce",
    "mask_dice",
    "mask_logits",
]

LOGIT_SCALE = 2.0  # probabilities are softmax(2 x logits), in training as in inference
NUM_LEVELS = 3  # coarse levels drawn in a step


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
        return _SparselyDifferentiated.apply(logits, code_ids, rows)
    return _gather(logits, code_ids, rows)


def _gather(logits: Tensor, code_ids: slice, rows: Tensor) -> Tensor:
    return logits[..., code_ids].flatten(0, 1).index_select(0, rows)


def _is_tapped(logits: Tensor) -> bool:
    return isinstance(logits.grad_fn, _DenseGradient._backward_cls)


class _SparselyDifferentiated(torch.autograd.Function):
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


def code_probabilities(logits: Tensor, scale: float = LOGIT_SCALE) -> Tensor:
    """Probabilities over the codes.

    Args:
        logits: (..., v) any float dtype: the code columns only.
        scale: factor on the logits before the softmax.

    Returns:
        (..., v) float32, rows sum to 1.
    """
    return (logits.float() * scale).softmax(dim=-1)


@dataclass(frozen=True)
class MaskLosses:
    """Unweighted loss terms, () float32 each: BCE and Dice of the full prediction, and the hierarchical loss, which is
    BCE + dice_weight * Dice summed over coarse levels."""

    bce: Tensor
    dice: Tensor
    hierarchical: Tensor


class HierarchicalMaskLoss(nn.Module):
    """Mask loss on the full prediction plus the hierarchical one on random prefixes.

    Args:
        num_levels: prefixes drawn per step, without replacement; capped by the tokenizer's length.
        dice_weight: weight of Dice beside BCE.
    """

    def __init__(self, num_levels: int = NUM_LEVELS, dice_weight: float = DICE_WEIGHT):
        super().__init__()
        self.num_levels = num_levels
        self.dice_weight = dice_weight

    def forward(
        self,
        mask_tokenizer: MaskTokenizer,
        probabilities: Tensor,
        target: Tensor,
        weights: Tensor | None = None,
        levels: Tensor | None = None,
        full: bool = True,
        hierarchical: bool = True,
    ) -> MaskLosses:
        """Losses of a batch of masks.

        Args:
            mask_tokenizer: decodes; gradient flows into its de-tokenizer where that is trainable.
            probabilities: (b, k, v) float32 code probabilities, with gradient.
            target: (b, s, s) float in [0, 1].
            weights: (b,) float: per-mask weights; the loss is then a weighted sum of per-mask terms, which adds up
                over accumulated and distributed batches. None: means over the batch, as in the reference.
            levels: (l,) int64 prefix lengths in [1, k), on the CPU, instead of drawn ones.
            full, hierarchical: False skips a term, which is then a zero.

        Returns:
            Zeros for no mask; nothing is decoded then.

        Raises:
            ValueError: shapes that do not fit each other, or `levels` out of range.
        """
        self._check(mask_tokenizer, probabilities, target, levels)
        if not len(target):
            nothing = probabilities.float().sum()  # a zero that may be differentiated like any loss
            return MaskLosses(nothing, nothing, nothing)
        bce = dice = coarse = probabilities.new_zeros(())
        if full:
            prediction = mask_tokenizer.decode_probabilities(probabilities)
            bce, dice = mask_bce(prediction, target, weights), mask_dice(prediction, target, weights)
        if hierarchical and probabilities.shape[1] > 1:
            coarse = self._coarse(mask_tokenizer, probabilities, target, weights, levels)
        return MaskLosses(bce, dice, coarse)

    @staticmethod
    def _check(mask_tokenizer: MaskTokenizer, probabilities: Tensor, target: Tensor, levels: Tensor | None) -> None:
        side = mask_tokenizer.config.image_size
        if probabilities.ndim != 3 or target.shape != (len(probabilities), side, side):
            raise ValueError(
                f"probabilities of shape {tuple(probabilities.shape)}, target of shape {tuple(target.shape)}: expected "
                f"(b, k, v) and (b, {side}, {side})"
            )
        if levels is None:
            return
        # Read here, so lengths on another device would make every step wait for it.
        if levels.device.type != "cpu" or levels.ndim != 1 or not len(levels) or levels.dtype != torch.int64:
            raise ValueError(
                f"levels of shape {tuple(levels.shape)}, {levels.dtype} on {levels.device}: expected (l,) int64 on the "
                "CPU"
            )
        if not all(1 <= n < probabilities.shape[1] for n in levels.tolist()):
            raise ValueError(f"levels {levels.tolist()}: expected 1 <= n < {probabilities.shape[1]}, shorter prefixes")

    def _coarse(
        self,
        mask_tokenizer: MaskTokenizer,
        probabilities: Tensor,
        target: Tensor,
        weights: Tensor | None,
        levels: Tensor | None,
    ) -> Tensor:
        k = probabilities.shape[1]
        if levels is None:
            levels = draw_levels(min(self.num_levels, k - 1), k)
        count, batch = len(levels), len(target)
        # All levels go through the de-tokenizer as one batch; the tail's *probabilities* are zero, as in the paper.
        kept = torch.arange(k)[None, :] < levels[:, None]
        kept = kept.to(probabilities.device, probabilities.dtype)
        prefixes = (kept[:, None, :, None] * probabilities).flatten(0, 1)
        config = mask_tokenizer.config
        sigma = coarse_sigma(levels.float(), config.num_mask_tokens, config.image_size).to(target.device)
        coarse = coarse_target(target.expand(count, *target.shape), sigma=sigma[:, None].expand(count, batch))
        prediction = mask_tokenizer.decode_probabilities(prefixes).unflatten(0, (count, batch))
        return torch.stack(
            [
                mask_bce(p, t, weights) + self.dice_weight * mask_dice(p, t, weights)
                for p, t in zip(prediction, coarse, strict=True)
            ]
        ).sum()
