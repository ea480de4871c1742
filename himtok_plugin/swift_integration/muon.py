"""`--optimizer muon_adamw`: Muon for the matrices of hidden layers, AdamW for everything else.

Muon (https://kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix; with its step scaled to the
size of AdamW's (arXiv 2502.16982), AdamW's learning rate and weight decay fit. A model from nothing learns with it in a
fraction of the steps what an image shows. ms-swift's own `muon` fetches its code from GitHub; this one is torch's.

Contract: registers an optimizer with ms-swift. Does not know masks.
"""

from __future__ import annotations

from typing import Any

import torch
from swift.optimizers import OptimizerCallback, optimizers_map
from torch import nn
from torch.optim import Optimizer

NAME = "muon_adamw"
IS_MUON = "muon"  # key of a parameter group


class MuonAndAdamW(Optimizer):
    """Two optimizers that schedules, checkpoints and callers see as one.

    Args:
        muon_groups: parameter groups of matrices (out, in).
        adamw_groups: parameter groups of everything else.
        lr: learning rate of both.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        muon_groups: list[dict[str, Any]],
        adamw_groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self._parts = {
            True: torch.optim.Muon(muon_groups, lr=lr, adjust_lr_fn="match_rms_adamw"),
            False: torch.optim.AdamW(adamw_groups, lr=lr, betas=betas, eps=eps),
        }
        groups = [{**group, IS_MUON: kind} for kind, part in self._parts.items() for group in part.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure=None):
        """One step of both; `closure`, where given, computes the loss again with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kind, part in self._parts.items():
            # Handed over anew each time: groups may have been split, and a checkpoint's state put in, in between.
            part.param_groups = [group for group in self.param_groups if group[IS_MUON] is kind]
            part.state = self.state
            part.step()
        return loss


class MuonAdamWCallback(OptimizerCallback):
    """Makes the optimizer from ms-swift's `--learning_rate`, `--weight_decay`, `--adam_beta1|2`, `--adam_epsilon`."""

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimizer of the trainer's model.

        Raises:
            ValueError: parameters are sharded, or this version of torch has no Muon.
        """
        args, trainer = self.args, self.trainer
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise ValueError(
                f"optimizer={NAME!r}: got DeepSpeed or FSDP, expected neither: shards of a matrix cannot be "
                "orthogonalised"
            )
        if not hasattr(torch.optim, "Muon"):
            raise ValueError(f"optimizer={NAME!r}: got torch {torch.__version__}, expected 2.9 or newer")
        model = trainer.model if model is None else model
        decayed = set(trainer.get_decay_parameter_names(model))
        hidden = _hidden_matrices(model)
        groups: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for is_muon in groups:
            for decays in (True, False):
                chosen = [
                    parameter
                    for name, parameter in model.named_parameters()
                    if parameter.requires_grad and (id(parameter) in hidden) is is_muon and (name in decayed) is decays
                ]
                if chosen:
                    groups[is_muon].append({"params": chosen, "weight_decay": args.weight_decay if decays else 0.0})
        if not groups[True]:
            raise ValueError(f"optimizer={NAME!r}: got a model without trainable matrices, expected some")
        return MuonAndAdamW(
            groups[True],
            groups[False],
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
        )


def _hidden_matrices(model: nn.Module) -> set[int]:
    """Ids of the weights of linear layers, without the one that makes logits, tied to the embeddings or not."""
    outside = set()
    for module in model.modules():
        for get in ("get_input_embeddings", "get_output_embeddings"):
            try:
                layer = getattr(module, get)()
            except (AttributeError, NotImplementedError):
                continue
            if layer is not None:
                outside.add(id(getattr(layer, "weight", None)))
    weights = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    return weights - outside


def register_muon() -> None:
    """Make `--optimizer muon_adamw` known to ms-swift."""
    optimizers_map[NAME] = MuonAdamWCallback
