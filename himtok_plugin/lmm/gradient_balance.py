"""A limit on the gradient of the mask losses in the LMM: a multiple of the gradient of the next-token loss.

The mask losses reach the LMM through the logits of the codes only. There both gradients are compared, mask by mask, and
that of the mask losses is scaled down where it is too large. The de-tokenizer's gradient stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class GradientBalance:
    """Limits the gradient of the mask losses at the logits of each mask; for `gather_mask_logits`.

    With g and g_next, the gradients of the mask losses and of the next-token loss at the k * v logits of one mask's
    codes, g is multiplied by min(1, max_ratio * |g_next| / |g|). Both norms are Euclidean.

    Masks are limited one by one. So the gradient of a step does not depend on how its samples are split into batches
    and processes, and one mask with a large gradient does not weaken the others.

    Nothing here copies from the device to the host.

    Attributes:
        max_ratio: largest |g| / |g_next|, >= 0. With 0, the mask losses do not train the LMM.
        tokens_per_mask: k.
        report: called in each backward pass with the mean factor of the masks, () float32 in [0, 1].
    """

    max_ratio: float
    tokens_per_mask: int
    report: Callable[[Tensor], None]

    def __call__(self, gradient: Tensor, next_token_gradient: Tensor) -> Tensor:
        """Return the limited gradient.

        Args:
            gradient: (m * k, v) of any float dtype, of the mask losses.
            next_token_gradient: of the same shape, on the same device.

        Returns:
            Of the shape and dtype of `gradient`. Gradients that are not finite stay so.
        """
        norm = self._norms(gradient)
        limit = self.max_ratio * self._norms(next_token_gradient)
        factors = torch.where(norm > limit, limit / norm, 1.0)
        self.report(factors.mean())
        return (gradient.unflatten(0, (-1, self.tokens_per_mask)) * factors).flatten(0, 1).to(gradient.dtype)

    def _norms(self, gradient: Tensor) -> Tensor:
        """(m * k, v) -> (m, 1, 1) of at least single precision."""
        masks = gradient.unflatten(0, (-1, self.tokens_per_mask))
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        return torch.linalg.vector_norm(masks, dim=(1, 2), keepdim=True, dtype=dtype)
