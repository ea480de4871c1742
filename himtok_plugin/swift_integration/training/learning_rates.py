"""Learning rates of their own for the de-tokenizer and for the mask tokens' embedding rows.

Contract: changes an optimizer that ms-swift has just made, before its schedule is: parameters move into groups of their
own; rows of a matrix that is trained as a whole have no group, so their share of every update is scaled instead, which
for Adam with decoupled weight decay is the same as another rate. ViT, aligner and LLM have ms-swift's own flags. Does
not know trainers and models.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def move_to_own_groups(optimizer: Optimizer, parameters: Iterable[nn.Parameter], rate: float) -> None:
    """Give parameters a learning rate of their own.

    The new groups keep everything else, such as weight decay, of the groups that the parameters stood in; parameters
    that are not trained are passed over.
    """
    wanted = {id(p) for p in parameters}
    for group in list(optimizer.param_groups):
        own = [p for p in group["params"] if id(p) in wanted]
        if not own:
            continue
        group["params"] = [p for p in group["params"] if id(p) not in wanted]
        optimizer.add_param_group({**group, "params": own, "lr": rate})
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]


def scale_embedding_updates(optimizer: Optimizer, matrices: Iterable[nn.Parameter], rows: Tensor, scale: float) -> None:
    """Scale what every step of an optimizer does to some rows.

    Args:
        optimizer: steps on whole, unsharded matrices.
        matrices: (vocabulary, hidden) embedding matrices; tied ones may be given twice, frozen ones are passed over.
        rows: (n,) int64.
        scale: the rows' learning rate in units of the matrices' own.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    found = list({id(p): p for p in matrices if id(p) in trained}.values())
    if found:
        EmbeddingUpdateScale(found, rows, scale).attach(optimizer)


class EmbeddingUpdateScale:
    """Scales what every optimizer step does to some rows of matrices.

    Args:
        matrices: (vocabulary, hidden) parameters of the optimizer, unsharded.
        rows: (n,) int64.
        scale: factor on the rows' updates.
    """

    def __init__(self, matrices: list[nn.Parameter], rows: Tensor, scale: float):
        self.matrices = matrices
        self.rows = rows
        self.scale = scale
        self._before: list[Tensor] = []

    def attach(self, optimizer: Optimizer) -> None:
        optimizer.register_step_pre_hook(lambda *_: self._remember())
        optimizer.register_step_post_hook(lambda *_: self._rescale())

    @torch.no_grad()
    def _remember(self) -> None:
        self._before = [matrix[self.rows.to(matrix.device)] for matrix in self.matrices]

    @torch.no_grad()
    def _rescale(self) -> None:
        for matrix, before in zip(self.matrices, self._before, strict=True):
            rows = self.rows.to(matrix.device)
            matrix[rows] = before.lerp(matrix[rows], self.scale)
        self._before = []
