"""`--optimizer muon_adamw`: Muon for the matrices and kernels of hidden layers, AdamW for everything else.

Muon (https://kellerjordan.github.io/posts/muon) orthogonalises the momentum of a matrix; with its step scaled to the
size of AdamW's (arXiv 2502.16982), AdamW's learning rate and weight decay fit. A model from nothing learns with it in a
fraction of the steps what an image shows. ms-swift's own `muon` fetches its code from GitHub; torch's takes no kernels
of convolutions, and orthogonalises in bfloat16, which takes most processors longer than the rest of a step.

Contract: registers an optimizer with ms-swift. Does not know what is learned.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from swift.optimizers import OptimizerCallback, optimizers_map
from torch import Tensor, nn
from torch.optim import Optimizer

from himtok_plugin.mask_tokenizer.encoder import MaskEncoder
from himtok_plugin.mask_tokenizer.quantizer import Quantizer
from himtok_plugin.mask_tokenizer.transformer import SelfAttention

NAME = "muon_adamw"
IS_MUON = "muon"  # key of a parameter group
RMS_OF_ADAMW = 0.2  # of AdamW's updates, which an orthogonal matrix is brought to (arXiv 2502.16982)
# Those of Muon's author, as torch has them.
MOMENTUM = 0.95
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.775, 2.0315), 5  # of x, x^3 and x^5 of every singular value, per step
NORM_EPS = 1e-7
IMAGE_CHANNELS = 4  # at most; layers of so few channels read or make pixels


class Muon(Optimizer):
    """Muon with steps of AdamW's size; of matrices, torch's with `adjust_lr_fn="match_rms_adamw"` but for rounding.

    A convolution's kernel (out, in, h, w) is taken as the matrix (out, in * h * w). On a CPU it orthogonalises in
    float32, and always matrices of one shape together.

    Args:
        muon_groups: parameter groups of matrices (out, in) and kernels.
        lr: learning rate, as one for AdamW.
    """

    def __init__(self, muon_groups: list[dict[str, Any]], lr: float):
        super().__init__(muon_groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"]
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                update = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
                by_shape[update.shape].append((parameter, update))
            for shape, pairs in by_shape.items():
                rate = group["lr"] * RMS_OF_ADAMW * max(shape) ** 0.5
                updates = orthogonalise(torch.stack([update for _, update in pairs]))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-rate)
        return loss


def orthogonalise(matrices: Tensor) -> Tensor:
    """Newton-Schulz iterations towards U V^T of U S V^T (https://kellerjordan.github.io/posts/muon).

    Args:
        matrices: (m, rows, columns).

    Returns:
        (m, rows, columns), bfloat16 on accelerators and float32 on a CPU, which seldom has products of the former.
    """
    linear, cubic, quintic = NEWTON_SCHULZ
    x = matrices.to(torch.float32 if matrices.device.type == "cpu" else torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=NORM_EPS)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x.mT if tall else x


class MuonAndAdamW(Optimizer):
    """Two optimizers that schedules, checkpoints and callers see as one.

    Args:
        muon_groups: parameter groups of matrices (out, in) and kernels (out, in, h, w).
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
            True: Muon(muon_groups, lr=lr),
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
            ValueError: parameters are sharded, or there is no matrix to train.
        """
        args, trainer = self.args, self.trainer
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise ValueError(
                f"optimizer={NAME!r}: got DeepSpeed or FSDP, expected neither: shards of a matrix cannot be "
                "orthogonalised"
            )
        model = trainer.model if model is None else model
        decayed = set(trainer.get_decay_parameter_names(model))
        hidden = _hidden_weights(model)
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


def _hidden_weights(model: nn.Module) -> set[int]:
    """Ids of the weights of linear layers and 2D convolutions, without those of embeddings, logits (tied or not),
    codebooks, and layers that read or make pixels or latents."""
    outside, weights = set(), set()
    for module in model.modules():
        for get in ("get_input_embeddings", "get_output_embeddings"):
            try:
                layer = getattr(module, get)()
            except (AttributeError, NotImplementedError):
                continue
            if layer is not None:
                outside.add(id(getattr(layer, "weight", None)))
        if isinstance(module, Quantizer):
            outside.update(map(id, module.parameters()))  # codes are places, like embeddings
        elif isinstance(module, MaskEncoder):
            outside.add(id(module.conv_out.weight))  # latents in steps of Muon run away from their codes
        elif isinstance(module, SelfAttention):
            weights.add(id(module.in_proj_weight))
        elif isinstance(module, nn.Linear):
            weights.add(id(module.weight))
        elif isinstance(module, nn.Conv2d) and min(module.in_channels, module.out_channels) > IMAGE_CHANNELS:
            weights.add(id(module.weight))
    return weights - outside


def register_muon() -> None:
    """Make `--optimizer muon_adamw` known to ms-swift."""
    optimizers_map[NAME] = MuonAdamWCallback
