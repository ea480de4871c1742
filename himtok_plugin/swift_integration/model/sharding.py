"""The mask tokenizer in runs of several processes with DDP, DeepSpeed or FSDP.

Contract: every process decodes masks in every step, through `ShardedDetokenizer` if DeepSpeed shards the de-tokenizer.
The frozen encoder is not part of the model and so never sharded, see detokenizer.py. `ParametersUsedAfterForward`
makes DDP count parameters that only the mask loss uses; `gather_fsdp_weights` and
`gather_trained_zero3_weights` gather what is sharded, for a checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers.integrations import deepspeed
from transformers.utils import ModelOutput

from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig

FSDP_LOADS_IN_ONE_PROCESS = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # transformers' and accelerate's environment variable


@contextmanager
def load_unsharded() -> Iterator[None]:
    """Make transformers load complete weights in every process of a run with ZeRO-3 or FSDP.

    Otherwise transformers shards them while loading (ZeRO-3), or loads them in one process only (FSDP).
    """
    config, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    one_loads = os.environ.pop(FSDP_LOADS_IN_ONE_PROCESS, None)
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
        if one_loads is not None:
            os.environ[FSDP_LOADS_IN_ONE_PROCESS] = one_loads


class ShardedDetokenizer:
    """Decodes like a `MaskTokenizer` whose decoder DeepSpeed shards; DeepSpeed gathers each layer when it is called.

    Args:
        expected_code_vectors: (b, n, v) code probabilities -> (b, n, d) code vectors, with the frozen codebook.
        sharded: has the sharded decoder and pixel decoder.
    """

    def __init__(self, expected_code_vectors: Callable[[Tensor], Tensor], sharded: MaskTokenizer):
        self.expected_code_vectors = expected_code_vectors
        self.sharded = sharded

    @property
    def config(self) -> MaskTokenizerConfig:
        return self.sharded.config

    def decode_probabilities(self, probabilities: Tensor) -> Tensor:
        """See `MaskTokenizer.decode_probabilities`."""
        return self.sharded.decode_code_vectors(self.expected_code_vectors(probabilities))


def gather_trained_zero3_weights(module: nn.Module) -> dict[str, Tensor]:
    """Gather the trained weights of a module that DeepSpeed shards with ZeRO-3.

    All processes must call it.

    Returns:
        In process 0 the weights on the CPU, in other processes nothing.
    """
    import deepspeed

    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    with deepspeed.zero.GatheredParameters(list(parameters.values())):
        if dist.get_rank() != 0:
            return {}
        return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def gather_fsdp_weights(model: nn.Module) -> dict[str, Tensor]:
    """Gather the weights of a model that FSDP shards.

    All processes must call it.

    Returns:
        In process 0 the weights on the CPU: all of them, or the trained ones if the model has an adapter. In other
        processes nothing.
    """
    is_adapter = hasattr(model, "peft_config")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter)
    gathered = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied = first.setdefault(id(parameter), name)
        if {name, tied} <= gathered.keys():
            gathered[name] = gathered[tied]  # tied weights must be one tensor again, to be saved once
    return gathered


class ParametersUsedAfterForward:
    """Parameters that the loss uses after the LMM's forward pass: a hook makes the LMM's output depend on them.

    DDP searches the output for parameters that do not contribute to it and marks their gradients as ready; it fails
    when the mask loss then produces such a gradient. For all other parameters it waits, also in a process whose batch
    has no mask. The hook adds zero times the parameters to the output's loss.

    Args:
        model: the LMM, before DDP wraps it.
        parameters: trained parameters outside its forward pass.
    """

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.zero: Tensor | None = None  # () zero of the last forward pass that depends on all the parameters
        model.register_forward_hook(self._add_to_loss)

    def _add_to_loss(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        if torch.is_grad_enabled() and isinstance(output, ModelOutput):
            self.zero = cast(Tensor, sum(p.sum() for p in self.parameters)) * 0
            loss = getattr(output, "loss", None)
            output.loss = self.zero if loss is None else loss + self.zero
