"""The encoder: squares to latents.

Latent i attends to the whole mask and to latents up to i, which orders the codes from coarse to fine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .configuration import MaskTokenizerConfig
from .transformer import Block

RGB_CHANNELS = 3  # of the released patch convolution; the mask is repeated over them


class MaskEncoder(nn.Module):
    """Transformer encoder with latent tokens after the patches (arXiv 2503.13026, section 3.1; arXiv 2406.07550)."""

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__()
        width, grid, latents = config.encoder_width, config.grid_size, config.num_mask_tokens
        self.latent_layout = config.latent_layout
        self.patch_embed = nn.Conv2d(RGB_CHANNELS, width, config.patch_size, stride=config.patch_size)
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid**2, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(latents, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(
            Block(width, config.encoder_heads, config.mlp_ratio) for _ in range(config.encoder_layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, config.code_width, kernel_size=1)

    def forward(self, squares: Tensor, latent_tokens: Tensor) -> Tensor:
        """Latents before quantization.

        Args:
            squares: (b, s, s) float in [0, 1].
            latent_tokens: (k, width) learned queries, which are a parameter of the whole model in the released weights.

        Returns:
            (b, k, d) float.
        """
        batch = squares.shape[0]
        patches = self.patch_embed(squares[:, None].expand(-1, RGB_CHANNELS, -1, -1)).flatten(2).transpose(1, 2)
        image = torch.cat([self.class_embedding.expand(batch, 1, -1), patches], dim=1) + self.positional_embedding
        latents = (latent_tokens + self.latent_token_positional_embedding).expand(batch, -1, -1)
        num_image = image.shape[1]
        x = self.ln_pre(torch.cat([image, latents], dim=1))
        allowed = self._allowed_attention(num_image, latents.shape[1], x.device)
        for block in self.transformer:
            x = block(x, allowed)
        return self._project(self.ln_post(x[:, num_image:]))

    @staticmethod
    def _allowed_attention(num_image: int, num_latents: int, device: torch.device) -> Tensor:
        """(n, n) bool, True where a query (row) may attend to a key (column).

        Image tokens attend to image tokens, latent i to image tokens and to latents up to i.
        """
        length = num_image + num_latents
        order = torch.arange(length, device=device)
        group = order.clamp(min=num_image - 1)  # all image tokens share one place in the causal order
        return group[None, :] <= group[:, None]

    def _project(self, latents: Tensor) -> Tensor:
        """(b, k, width) -> (b, k, d) by the 1x1 convolution."""
        batch, num_latents, width = latents.shape
        if self.latent_layout == "legacy_reshape":
            # The reshape mixes latents, so that every code depends on every latent. The released weights need it.
            channels_first = latents.reshape(batch, width, num_latents, 1)
        else:
            channels_first = latents.transpose(1, 2).unsqueeze(-1)
        return self.conv_out(channels_first).squeeze(-1).transpose(1, 2)
