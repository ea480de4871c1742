"""Latents to codes and codes to codebook rows. Always computed in float32, whatever the model's dtype.

Does not know how a codebook is trained (`objective.py`) nor what codes are used for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import MaskTokenizerConfig


class Quantizer(nn.Module):
    """Codebook of v rows, stored as an embedding times a bias-free projection; float32 whatever it is cast to."""

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__()
        self.normalize_codebook = config.normalize_codebook
        self.embedding = nn.Embedding(config.codebook_size, config.code_width)
        self.embedding_proj = nn.Linear(config.code_width, config.code_width, bias=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Quantizer:
        """What `to`, `half`, `cuda`, … of this module and of any around it do to a tensor, a cast excepted."""

        def without_cast(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype == torch.float32 or not applied.is_floating_point():
                return applied
            # From the tensor as it was, where it holds anything: digits that a cast has dropped do not come back.
            return (applied if tensor.is_meta else tensor).to(applied.device, torch.float32)

        return super()._apply(without_cast, recurse)

    def codebook(self) -> Tensor:
        """(v, d) float32, not normalised."""
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            return F.linear(self.embedding.weight.float(), self.embedding_proj.weight.float())

    def nearest_codes(self, latents: Tensor, count: int | None = None) -> Tensor:
        """(b, k, d) latents -> (b, k) int64, nearest row after L2-normalising both sides; with `count` so many of them,
        nearest first: (b, k, count)."""
        with torch.autocast(latents.device.type, enabled=False):
            directions = F.normalize(latents.float(), dim=-1)
            # Between unit vectors the nearest is the one with the largest inner product.
            nearness = directions @ F.normalize(self.codebook(), dim=-1).T
            return nearness.argmax(dim=-1) if count is None else nearness.topk(count, dim=-1).indices

    def rows(self, codes: Tensor) -> Tensor:
        """(b, n) int64 codes -> (b, n, d) float32, the rows that the decoder reads."""
        return F.embedding(codes, self._decoder_codebook())

    def expected_code_vectors(self, probabilities: Tensor) -> Tensor:
        """(b, n, v) probabilities -> (b, n, d) float32, their mean codebook row; an all-zero row stays zero."""
        with torch.autocast(probabilities.device.type, enabled=False):
            return probabilities.float() @ self._decoder_codebook()

    def _decoder_codebook(self) -> Tensor:
        codebook = self.codebook()
        return F.normalize(codebook, dim=-1) if self.normalize_codebook else codebook

    @torch.no_grad()
    def place_codebook(self, rows: Tensor, codes: Tensor | None = None) -> None:
        """Overwrite rows so that `codebook()[codes] == rows` ((m, d) float32); all rows when `codes` is None."""
        projection = self.embedding_proj.weight.double()
        weights = torch.linalg.solve(projection, rows.double().T).T.to(self.embedding.weight.dtype)
        if codes is None:
            self.embedding.weight.copy_(weights)
        else:
            self.embedding.weight[codes] = weights
