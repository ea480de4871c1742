"""The mask tokenizer in runs of several processes: DDP, DeepSpeed, FSDP.

Contract: what frozen parts compute, codes and codebook rows, comes from a whole copy that no wrapper knows
(`keep_whole_copy`); what is trained goes through the attached, sharded mask tokenizer (`ShardedDetokenizer`), in every
process of every step alike. `UsedLater` tells DDP of parameters that are used after the LMM's forward pass only.
Does not know batches and losses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.integrations import deepspeed
from transformers.utils import ModelOutput

from ..mask_tokenizer import MaskTokenizer, MaskTokenizerConfig


@contextmanager
def loading_whole() -> Iterator[None]:
    """Within it transformers does not shard what it loads, although the run is one with ZeRO-3: a whole copy is taken
    first, and DeepSpeed shards whatever is not when it starts."""
    config, deepspeed._hf_deepspeed_config_weak_ref = deepspeed._hf_deepspeed_config_weak_ref, None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def keep_whole_copy(mask_tokenizer: MaskTokenizer) -> MaskTokenizer:
    """A copy for encoding while DeepSpeed or FSDP shards the attached one or casts it to half precision.

    It keeps its weights, in float32, to itself: encoding needs no communication, so processes with different numbers of
    masks do not wait for each other, and codes are those of any other run.
    """
    whole = copy.deepcopy(mask_tokenizer).float().requires_grad_(False).eval()
    mask_tokenizer.himtok_whole = (whole,)  # in a tuple, where torch sees no submodule
    return whole


def whole_copy(mask_tokenizer: MaskTokenizer) -> MaskTokenizer | None:
    """What `keep_whole_copy` made; None where it was not called."""
    return getattr(mask_tokenizer, "himtok_whole", (None,))[0]


class ShardedDetokenizer:
    """Decodes like a `MaskTokenizer` whose decoder is sharded: DeepSpeed gathers a part as it is called, and only that.

    Args:
        whole: gives the codebook rows, which are frozen.
        sharded: gives decoder and pixel decoder.
    """

    def __init__(self, whole: MaskTokenizer, sharded: MaskTokenizer):
        self.whole = whole
        self.sharded = sharded

    @property
    def config(self) -> MaskTokenizerConfig:
        return self.whole.config

    def decode_probabilities(self, probabilities: Tensor) -> Tensor:
        """See `MaskTokenizer.decode_probabilities`."""
        dtype = next(self.sharded.decoder.parameters()).dtype  # without autocast, DeepSpeed runs in its own precision
        rows = self.whole.quantize.expected_rows(probabilities)
        return self.sharded.decode_rows(rows if torch.is_autocast_enabled(rows.device.type) else rows.to(dtype))


class UsedLater:
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
