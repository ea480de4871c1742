"""Weights at addresses that do not depend on the file they were loaded from.

Weights of a safetensors file are mapped into memory, so their addresses follow from the length of the file's header. A
checkpoint has another header than the base model, and matrix products of some CPUs round differently at addresses that
are no multiple of a vector register. A resumed training would differ from the whole one in the last digits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes: a register of AVX-512 and a cache line; torch allocates memory at multiples of it


def align_weights(model: nn.Module) -> None:
    """Copy parameters and buffers on the CPU that are not at multiples of `ALIGNMENT` to new memory, in place.

    Tensors that share memory share it afterwards. Weights that torch allocated itself are aligned and stay.
    """
    copies: dict[tuple, Tensor] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        data = tensor.data
        if type(data) is not Tensor or data.device.type != "cpu" or data.layout != torch.strided:
            continue  # sharded, quantized or without memory
        address = data.data_ptr()
        if address % ALIGNMENT == 0:
            continue
        key = address, data.dtype, data.shape, data.stride()
        if key not in copies:
            copies[key] = data.clone()
        tensor.data = copies[key]
