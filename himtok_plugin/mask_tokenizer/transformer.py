"""The pre-norm transformer block of encoder and decoder.

Parameter names are those of the released weights (`ln_1`, `attn.in_proj_weight`, …).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values (arXiv 1706.03762)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        """(b, n, width) -> (b, n, width); `allowed` (n, n) bool is True where a query (row) may attend to a key."""
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # On CPUs, the backward pass of the fused kernel is slower than the plain formula for short sequences.
        fused = x.device.type != "cpu" or not torch.is_grad_enabled()
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed) if fused else _attend(q, k, v, allowed)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


def _attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None) -> Tensor:
    """Scaled dot-product attention as a plain formula; q, k and v are (b, heads, n, d)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(dim=-1).to(v.dtype) @ v


class FeedForward(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, width: int, hidden_width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, hidden_width)
        self.c_proj = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(GradientCheckpointingLayer):
    """Pre-norm attention, then pre-norm feed-forward, each added to its input."""

    def __init__(self, width: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, mlp_ratio * width)

    def forward(self, x: Tensor, allowed: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), allowed)
        return x + self.mlp(self.ln_2(x))
