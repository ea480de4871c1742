"""First half of the de-tokenizer: a transformer from code vectors to a grid of features. It does not see the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import MaskTokenizerConfig
from .transformer import Block


class MaskDecoder(nn.Module):
    """Full-attention transformer over one class token, a grid of mask tokens and the codes (arXiv 2406.07550)."""

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__()
        width = config.decoder_width
        self.grid_size = config.grid_size
        self.num_mask_tokens = config.num_mask_tokens
        self.decoder_embed = nn.Linear(config.code_width, width)
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + config.grid_size**2, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(config.num_mask_tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(
            Block(width, config.decoder_heads, config.mlp_ratio) for _ in range(config.decoder_layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Conv2d(width, config.pixel_hidden_width, kernel_size=1),
            nn.Tanh(),
            nn.Conv2d(config.pixel_hidden_width, config.pixel_input_channels, kernel_size=1),
        )

    def forward(self, code_vectors: Tensor) -> Tensor:
        """(b, n, d) code vectors, 1 <= n <= k -> (b, channels, grid, grid)."""
        batch, length, _ = code_vectors.shape
        latents = self.decoder_embed(code_vectors.to(self.decoder_embed.weight.dtype))
        # Missing codes are zeros after the embedding. A zero code vector before it would add the bias.
        latents = F.pad(latents, (0, 0, 0, self.num_mask_tokens - length))
        latents = latents + self.latent_token_positional_embedding
        blank = self.mask_token.expand(batch, self.grid_size**2, -1)
        canvas = torch.cat([self.class_embedding.expand(batch, 1, -1).to(blank.dtype), blank], dim=1)
        x = self.ln_pre(torch.cat([canvas + self.positional_embedding, latents], dim=1))
        for block in self.transformer:
            x = block(x)
        grid = self.ln_post(x[:, 1 : 1 + self.grid_size**2]).transpose(1, 2)
        return self.ffn(grid.unflatten(2, (self.grid_size, self.grid_size)))
