"""Second half of the de-tokenizer: convolutions from a grid of features to an output value per pixel.

This is the decoder of MaskGIT's VQGAN (arXiv 2202.04200).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import MaskTokenizerConfig

GROUP_NORM_EPS = 1e-6
MIDDLE_BLOCKS = 2


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU and 3x3 convolution without bias, twice, with a residual connection."""

    def __init__(self, channels_in: int, channels_out: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=GROUP_NORM_EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=GROUP_NORM_EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.nin_shortcut = (
            nn.Conv2d(channels_out, channels_out, 1, bias=False) if channels_in != channels_out else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels_in, h, w) -> (b, channels_out, h, w)."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        if self.nin_shortcut is None:
            return x + hidden
        # The released weights were trained with the shortcut applied to `hidden`, without the input's residual.
        return hidden + self.nin_shortcut(hidden)


class Level(nn.Module):
    """Residual blocks at one resolution, then nearest-neighbour upsampling, except at full resolution."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int, groups: int, upsample: bool):
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(channels_in if i == 0 else channels_out, channels_out, groups) for i in range(blocks)
        )
        self.upsample_conv = nn.Conv2d(channels_out, channels_out, 3, padding=1) if upsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(b, channels_in, h, w) -> (b, channels_out, h, w), or twice as high and wide with upsampling."""
        for block in self.block:
            x = block(x)
        if self.upsample_conv is not None:
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class PixelDecoder(nn.Module):
    """Decoder of several levels, numbered from full resolution (0) to the grid and applied in reverse order."""

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__()
        widths = [config.pixel_channels * m for m in config.pixel_channel_multipliers]
        groups = config.pixel_groups
        self.conv_in = nn.Conv2d(config.pixel_input_channels, widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(ResidualBlock(widths[-1], widths[-1], groups) for _ in range(MIDDLE_BLOCKS))
        self.up = nn.ModuleList(
            Level(
                channels_in=widths[min(i + 1, len(widths) - 1)],
                channels_out=widths[i],
                blocks=config.pixel_res_blocks,
                groups=groups,
                upsample=i > 0,
            )
            for i in range(len(widths))
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=GROUP_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.output_channels, 3, padding=1)

    def forward(self, grid: Tensor) -> Tensor:
        """(b, channels, grid, grid) -> (b, s, s), the mean over the output channels."""
        # In bfloat16, convolutions are up to twice as fast in this layout, and they preserve it.
        x = self.conv_in(grid.contiguous(memory_format=torch.channels_last))
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x))).mean(dim=1)
