"""The quantizer: latents to codes, and codes to code vectors. It computes in float32 whatever the model's dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration import MaskTokenizerConfig


class KeptInFloat32(nn.Module):
    """A module whose parameters stay float32 when the model is cast."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeptInFloat32:
        """Apply what `to`, `half`, `cuda`, … do to the parameters of this module, except casts."""

        def without_cast(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype == torch.float32 or not applied.is_floating_point():
                return applied
            # Move the original tensor, if it holds data, because the cast one has lost precision.
            return (applied if tensor.is_meta else tensor).to(applied.device, torch.float32)

        return super()._apply(without_cast, recurse)


class Quantizer(KeptInFloat32):
    """Codebook of v code vectors, stored as an embedding times a bias-free projection.

    Its parameters stay float32 when the model is cast.
    """

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__()
        self.normalize_codebook = config.normalize_codebook
        self.embedding = nn.Embedding(config.codebook_size, config.code_width)
        self.embedding_proj = nn.Linear(config.code_width, config.code_width, bias=False)
        self.num_vectors = config.codebook_size

    def codebook(self) -> Tensor:
        """(v, d) float32, not normalised."""
        with torch.autocast(self.embedding.weight.device.type, enabled=False):
            return F.linear(self.embedding.weight.float(), self.embedding_proj.weight.float())

    def code_features(self) -> Tensor:
        """(v, d) float32, what a code means at any position: its code vector."""
        return self.codebook()

    def nearest_codes(self, latents: Tensor, count: int | None = None) -> Tensor:
        """Codes whose L2-normalised vectors are nearest to the L2-normalised latents.

        Args:
            latents: (b, k, d) float.
            count: how many codes per latent.

        Returns:
            (b, k) int64, or with `count` (b, k, count) int64, nearest first.
        """
        with torch.autocast(latents.device.type, enabled=False):
            directions = F.normalize(latents.float(), dim=-1)
            # The nearest unit vector is the one with the largest inner product.
            nearness = directions @ F.normalize(self.codebook(), dim=-1).T
            return nearness.argmax(dim=-1) if count is None else nearness.topk(count, dim=-1).indices

    def code_vectors(self, codes: Tensor) -> Tensor:
        """(b, n) int64 codes -> (b, n, d) float32, the vectors that the decoder takes."""
        return F.embedding(codes, self._decoder_codebook())

    def vector_indices(self, codes: Tensor) -> Tensor:
        """(b, n) codes -> (b, n) int64 in [0, num_vectors), which code vector each is; for statistics."""
        return codes

    def expected_code_vectors(self, probabilities: Tensor) -> Tensor:
        """(b, n, v) probabilities -> (b, n, d) float32, expected code vectors; zero if all probabilities are zero."""
        with torch.autocast(probabilities.device.type, enabled=False):
            return probabilities.float() @ self._decoder_codebook()

    def _decoder_codebook(self) -> Tensor:
        codebook = self.codebook()
        return F.normalize(codebook, dim=-1) if self.normalize_codebook else codebook

    @torch.no_grad()
    def set_code_vectors(self, vectors: Tensor, codes: Tensor | None = None) -> None:
        """Change the embedding so that `codebook()[codes]` becomes `vectors`.

        Args:
            vectors: (m, d) float32.
            codes: (m,) int64; None: all codes.
        """
        projection = self.embedding_proj.weight.double()
        weights = torch.linalg.solve(projection, vectors.double().T).T.to(self.embedding.weight.dtype)
        if codes is None:
            self.embedding.weight.copy_(weights)
        else:
            self.embedding.weight[codes] = weights
