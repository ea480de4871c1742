"""`--optimizer muon_adamw`: Muon for the weights of hidden linear layers and convolutions, AdamW for all others.

Muon (https://kellerjordan.github.io/posts/muon) orthogonalizes the momentum of a matrix. Its updates are scaled to the
size of AdamW's (arXiv 2502.16982), so that AdamW's learning rate and weight decay fit. Training from scratch takes a
fraction of AdamW's steps. ms-swift's own `muon` downloads its code from GitHub.

Why not `torch.optim.Muon` (2.9 and later): it refuses convolution kernels (pytorch/pytorch#166209; #180561 would accept
them), and it orthogonalizes in bfloat16, one matrix after the other. Two-dimensional views of the kernels would remove
the first obstacle, and a test holds that both take the same steps then. The second remains on CPUs. For the 37 weights
of size `tiny`, whose forward and backward pass takes 160 to 240 ms on one core, a step took

    CPU                            this file   torch
    AVX-512 with bfloat16              36 ms    74 ms
    AVX-512 without bfloat16           43 ms   188 ms
    AVX2                               62 ms   899 ms
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from swift.optimizers import OptimizerCallback, optimizers_map
from torch import Tensor, nn
from torch.optim import Optimizer

from himtok_plugin.mask_tokenizer.encoder import MaskEncoder
from himtok_plugin.mask_tokenizer.quantizer import KeptInFloat32
from himtok_plugin.mask_tokenizer.transformer import SelfAttention

NAME = "muon_adamw"
IS_MUON = "muon"  # key of a parameter group
RMS_OF_ADAMW = 0.2  # root mean square of AdamW's updates, to which Muon's are scaled (arXiv 2502.16982)
# From the author of Muon, the defaults of torch.optim.Muon.
MOMENTUM = 0.95
NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS = (3.4445, -4.775, 2.0315), 5  # factors of x, x^3 and x^5 for a singular value x
NORM_EPS = 1e-7
IMAGE_CHANNELS = 4  # layers with at most this many channels read or produce pixels


class KernelMuon(Optimizer):
    """Muon for matrices and convolution kernels: `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")` up to rounding.

    A kernel (out, in, h, w) counts as the matrix (out, in * h * w). All matrices of one shape are orthogonalized
    together, on CPUs in float32.

    Args:
        muon_groups: parameter groups of matrices (out, in) and kernels.
        lr: learning rate, of the same size as for AdamW.
    """

    def __init__(self, muon_groups: list[dict[str, Any]], lr: float):
        super().__init__(muon_groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; a `closure` computes the loss again with gradients."""
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
                updates = orthogonalize(torch.stack([update for _, update in pairs]))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-rate)
        return loss


def orthogonalize(matrices: Tensor) -> Tensor:
    """Approximate U V^T of matrices U S V^T by Newton-Schulz iterations (https://kellerjordan.github.io/posts/muon).

    Args:
        matrices: (m, rows, columns).
    Returns:
        (m, rows, columns), bfloat16 on accelerators, float32 on CPUs, where few have instructions for bfloat16.
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
    """Two optimizers in one, for schedules, checkpoints and callers.

    Args:
        muon_groups: parameter groups of matrices (out, in) and kernels (out, in, h, w).
        adamw_groups: parameter groups of all other parameters.
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
            True: KernelMuon(muon_groups, lr=lr),
            False: torch.optim.AdamW(adamw_groups, lr=lr, betas=betas, eps=eps),
        }
        groups = [{**group, IS_MUON: kind} for kind, part in self._parts.items() for group in part.param_groups]
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step of both; a `closure` computes the loss again with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kind, part in self._parts.items():
            # Set at every step, because groups can be split and a checkpoint's state loaded in between.
            part.param_groups = [group for group in self.param_groups if group[IS_MUON] is kind]
            part.state = self.state
            part.step()
        return loss


class MuonAdamWCallback(OptimizerCallback):
    """Creates the optimizer from `--learning_rate`, `--weight_decay`, `--adam_beta1|2` and `--adam_epsilon`."""

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Create the optimizer of a model, by default the trainer's.

        Raises:
            ValueError: parameters are sharded, or no matrix is trained.
        """
        args, trainer = self.args, self.trainer
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            raise ValueError(
                f"optimizer={NAME!r}: got DeepSpeed or FSDP, expected neither: Muon cannot orthogonalize "
                "shards of a matrix"
            )
        model = trainer.model if model is None else model
        decayed = set(trainer.get_decay_parameter_names(model))
        hidden = find_hidden_weights(model)
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


def find_hidden_weights(model: nn.Module) -> set[int]:
    """Return the `id` of the weights of hidden linear layers and 2D convolutions.

    Embeddings, output embeddings (tied or not), codebooks, and layers that read or produce pixels or latents are not
    hidden.
    """
    outside, weights = set(), set()
    for module in model.modules():
        for get in ("get_input_embeddings", "get_output_embeddings"):
            try:
                layer = getattr(module, get)()
            except (AttributeError, NotImplementedError):
                continue
            if layer is not None:
                outside.add(id(getattr(layer, "weight", None)))
        if isinstance(module, KeptInFloat32):
            outside.update(map(id, module.parameters()))  # code vectors are points in space, like embeddings
        elif isinstance(module, MaskEncoder):
            outside.add(id(module.conv_out.weight))  # with Muon's steps, latents leave their code vectors behind
        elif isinstance(module, SelfAttention):
            weights.add(id(module.in_proj_weight))
        elif isinstance(module, nn.Linear):
            weights.add(id(module.weight))
        elif isinstance(module, nn.Conv2d) and min(module.in_channels, module.out_channels) > IMAGE_CHANNELS:
            weights.add(id(module.weight))
    return weights - outside


def register_muon() -> None:
    """Register `--optimizer muon_adamw` with ms-swift; idempotent."""
    optimizers_map[NAME] = MuonAdamWCallback
