"""The mask tokenizer in runs of several processes: DDP, DeepSpeed, FSDP.

Contract: what is trained goes through the attached, sharded de-tokenizer (`ShardedDetokenizer`), in every process of
every step alike; what is frozen is not attached at all, see tokenizer_halves.py. `ParametersUsedAfterForward` tells DDP
of parameters that are used after the LMM's forward pass only; `gather_fsdp_weights` are FSDP's. Does not know batches
and losses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers.integrations import deepspeed
from transformers.utils import ModelOutput

from himtok_plugin.mask_tokenizer import MaskTokenizer, MaskTokenizerConfig

FSDP_LOADS_IN_ONE_PROCESS = "FSDP_CPU_RAM_EFFICIENT_LOADING"  # transformers' and accelerate's environment variable


@contextmanager
def load_unsharded() -> Iterator[None]:
    """Within it transformers reads all weights in every process, although the run is one with ZeRO-3, which would shard
    them at once, or FSDP, which would leave them out everywhere but in one process."""
    config, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    one_loads = os.environ.pop(FSDP_LOADS_IN_ONE_PROCESS, None)
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
        if one_loads is not None:
            os.environ[FSDP_LOADS_IN_ONE_PROCESS] = one_loads


class ShardedDetokenizer:
    """Decodes like a `MaskTokenizer` whose decoder is sharded: DeepSpeed gathers a part as it is called, and only that.

    Args:
        expected_code_vectors: (b, n, v) code probabilities -> (b, n, d) code vectors, of the codebook, which is frozen.
        sharded: gives decoder and pixel decoder.
    """

    def __init__(self, expected_code_vectors: Callable[[Tensor], Tensor], sharded: MaskTokenizer):
        self.expected_code_vectors = expected_code_vectors
        self.sharded = sharded

    @property
    def config(self) -> MaskTokenizerConfig:
        return self.sharded.config

    def decode_probabilities(self, probabilities: Tensor) -> Tensor:
        """See `MaskTokenizer.decode_probabilities`."""
        dtype = next(self.sharded.decoder.parameters()).dtype  # without autocast, DeepSpeed runs in its own precision
        rows = self.expected_code_vectors(probabilities)
        return self.sharded.decode_code_vectors(rows if torch.is_autocast_enabled(rows.device.type) else rows.to(dtype))


def gather_fsdp_weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a model that FSDP shards, on the CPU: of an adapter and what is trained beside it, else all of them.

    To be called by all processes; only process 0 gets them.
    """
    is_adapter = hasattr(model, "peft_config")
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=is_adapter)
    gathered = get_model_state_dict(model, options=options)
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied = first.setdefault(id(parameter), name)
        if {name, tied} <= gathered.keys():
            gathered[name] = gathered[tied]  # one tensor again, as which it is saved once
    return gathered


class ParametersUsedAfterForward:
    """Parameters that the loss uses after the LMM's forward pass: lets the LMM's output depend on them.

    DDP looks through the output for parameters without a part in it, takes their gradients for done, and breaks when a
    loss brings some after all; and it waits for all others, also in a process whose batch has no mask.

    Args:
        model: the LMM, before DDP wraps it.
        parameters: trained ones outside its forward pass.
    """

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.zero: Tensor | None = None  # () of the last forward pass: all the parameters had a part in it
        model.register_forward_hook(self._add)

    def _add(self, module: nn.Module, inputs: tuple, output) -> None:
        if torch.is_grad_enabled() and isinstance(output, ModelOutput):
            self.zero = sum(p.sum() for p in self.parameters) * 0
            loss = getattr(output, "loss", None)
            output.loss = self.zero if loss is None else loss + self.zero
