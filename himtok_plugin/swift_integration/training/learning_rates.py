"""Separate learning rates for the de-tokenizer and for the mask tokens' embeddings.

Contract: these functions change an optimizer after ms-swift has created it and before it creates the schedule.
Parameters move to groups with their own rate. Some embeddings of a matrix that is trained as a whole cannot have a
group, so every update of them is scaled instead; for Adam with decoupled weight decay this is the same as another rate.
For ViT, aligner and LLM, ms-swift has flags.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def move_to_own_groups(optimizer: Optimizer, parameters: Iterable[nn.Parameter], rate: float) -> None:
    """Move parameters to groups with another learning rate.

    The new groups keep all other settings, such as weight decay. Parameters that the optimizer does not train are
    skipped.
    """
    wanted = {id(p) for p in parameters}
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in wanted]
        if not moved:
            continue
        group["params"] = [p for p in group["params"] if id(p) not in wanted]
        optimizer.add_param_group({**group, "params": moved, "lr": rate})
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]


def scale_embedding_updates(
    optimizer: Optimizer, matrices: Iterable[nn.Parameter], token_ids: Tensor, scale: float
) -> None:
    """Scale every update of some token embeddings.

    Args:
        optimizer: trains whole, unsharded matrices.
        matrices: (vocabulary, hidden) embedding matrices. Tied ones can be there twice, frozen ones are skipped.
        token_ids: (n,) int64, of the embeddings.
        scale: learning rate of these embeddings divided by that of the matrices.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = list({id(p): p for p in matrices if id(p) in trained}.values())
    if found:
        EmbeddingUpdateScale(found, token_ids, scale).attach(optimizer)


class EmbeddingUpdateScale:
    """Hooks of an optimizer that scale every update of some token embeddings.

    Args:
        matrices: (vocabulary, hidden) parameters of the optimizer, unsharded.
        token_ids: (n,) int64, of the embeddings.
        scale: factor on their updates.
    """

    def __init__(self, matrices: list[nn.Parameter], token_ids: Tensor, scale: float):
        self.matrices = matrices
        self.token_ids = token_ids
        self.scale = scale
        self._before: list[Tensor] = []

    def attach(self, optimizer: Optimizer) -> None:
        """Register the hooks."""
        optimizer.register_step_pre_hook(lambda *_: self._remember())
        optimizer.register_step_post_hook(lambda *_: self._rescale())

    @torch.no_grad()
    def _remember(self) -> None:
        self._before = [matrix[self.token_ids.to(matrix.device)] for matrix in self.matrices]

    @torch.no_grad()
    def _rescale(self) -> None:
        for matrix, before in zip(self.matrices, self._before, strict=True):
            ids = self.token_ids.to(matrix.device)
            matrix[ids] = before.lerp(matrix[ids], self.scale)
        self._before = []
