"""The quantizer of the code scheme "box": each code refines the sum of the code vectors before it.

This is residual quantization (arXiv 2107.03312, section III-C) with a codebook for each position. The first positions
describe the box of the object and have fixed code vectors; the others describe its shape and are trained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration import MaskTokenizerConfig
from ..quantizer import KeptInFloat32
from .box_codes import COORDINATES, box_code_vectors, describe_box_codes


class ResidualQuantizer(KeptInFloat32):
    """A codebook of v code vectors for each of k positions. It computes in float32 whatever the model's dtype.

    A code vector has 4 coordinates of the box and the shape's d - 4 values; one of the two parts is zero.
    """

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__()
        self.codebook_size = config.codebook_size
        self.box_tokens = config.box_tokens
        self.num_vectors = config.num_mask_tokens * config.codebook_size
        shape_tokens = config.num_mask_tokens - config.box_tokens
        self.shape_codebooks = nn.Embedding(shape_tokens * config.codebook_size, config.code_width - COORDINATES)

    def codebooks(self) -> Tensor:
        """(k, v, d) float32, the code vectors of every position."""
        shapes = self._shape_vectors()
        boxes = box_code_vectors(self.box_tokens, self.codebook_size, shapes.device)
        return torch.cat([F.pad(boxes, (0, shapes.shape[-1])), F.pad(shapes, (COORDINATES, 0))])

    def _shape_vectors(self) -> Tensor:
        """(k - box_tokens, v, d - 4) float32."""
        return self.shape_codebooks.weight.float().unflatten(0, (-1, self.codebook_size))

    def code_features(self) -> Tensor:
        """(v, f) float32, what a code means: as part of a box, and as shape at every position, with equal variance."""
        boxes = describe_box_codes(self.codebook_size).to(self.shape_codebooks.weight.device)
        shapes = self._shape_vectors().transpose(0, 1).flatten(1)
        return torch.cat([part / part.var(0).sum().sqrt().clamp(min=1e-6) for part in (boxes, shapes)], dim=1)

    def nearest_codes(self, latents: Tensor, beams: int = 1) -> Tensor:
        """Codes whose vectors add up to nearly the latents.

        Args:
            latents: (b, d) float.
            beams: 1 takes at each position the vector nearest to what is left of the latent. With more, a beam search
                keeps this number of the best codes up to each position.

        Returns:
            (b, k) int64.
        """
        with torch.autocast(latents.device.type, enabled=False):
            coordinates, shapes = latents.float().split([COORDINATES, latents.shape[1] - COORDINATES], dim=1)
            # The shape is seen in the nearest box, so there is nothing to search. The parts are not compared together,
            # because the last box codes differ by less than the rounding error of a shape's distance.
            box_vectors = box_code_vectors(self.box_tokens, self.codebook_size, latents.device)
            box_codes = _beam_search(coordinates, box_vectors, beams=1)
            return torch.cat([box_codes, _beam_search(shapes, self._shape_vectors(), beams)], dim=1)

    def code_vectors(self, codes: Tensor) -> Tensor:
        """(b, n) int64 codes -> (b, n, d) float32, the vectors that the decoder adds up."""
        positions = torch.arange(codes.shape[1], device=codes.device)
        return self.codebooks()[positions, codes]

    def vector_indices(self, codes: Tensor) -> Tensor:
        """(b, n) codes -> (b, n) int64 in [0, num_vectors), which code vector each is; for statistics."""
        return codes + self.codebook_size * torch.arange(codes.shape[1], device=codes.device)

    def expected_code_vectors(self, probabilities: Tensor) -> Tensor:
        """(b, n, v) probabilities -> (b, n, d) float32, expected code vectors; zero if all probabilities are zero."""
        with torch.autocast(probabilities.device.type, enabled=False):
            codebooks = self.codebooks()[: probabilities.shape[1]]
            return torch.einsum("bnv,nvd->bnd", probabilities.float(), codebooks)

    @torch.no_grad()
    def round_boxes(self, coordinates: Tensor) -> Tensor:
        """Coordinates (b, 4) of boxes to those that their codes stand for, (b, 4) float32."""
        vectors = box_code_vectors(self.box_tokens, self.codebook_size, coordinates.device)
        codes = _beam_search(coordinates.float(), vectors, beams=1)
        positions = torch.arange(self.box_tokens, device=codes.device)
        return vectors[positions, codes].sum(dim=1)

    @torch.no_grad()
    def set_shape_codebook(self, position: int, vectors: Tensor) -> None:
        """Set the code vectors (v, d - 4) of a position, which is counted from the first after the box."""
        first = position * self.codebook_size
        self.shape_codebooks.weight[first : first + self.codebook_size] = vectors


def _beam_search(points: Tensor, codebooks: Tensor, beams: int) -> Tensor:
    """Codes whose vectors add up to nearly the points.

    Args:
        points: (b, d) float32.
        codebooks: (n, v, d) float32.
        beams: sums that are kept at each position.

    Returns:
        (b, n) int64.
    """
    rest = points[:, None]  # (b, beams so far, d)
    codes = torch.zeros((len(points), 1, 0), dtype=torch.int64, device=points.device)
    for codebook in codebooks:
        distances = rest.square().sum(-1, keepdim=True) - 2 * rest @ codebook.T + codebook.square().sum(-1)
        distances = distances.flatten(1)
        best = distances.topk(min(beams, distances.shape[1]), dim=1, largest=False).indices
        beam, code = best // len(codebook), best % len(codebook)
        rest = _take(rest, beam) - codebook[code]
        codes = torch.cat([_take(codes, beam), code[..., None]], dim=2)
    return codes[:, 0]


def _take(values: Tensor, chosen: Tensor) -> Tensor:
    """(b, m, d) and (b, n) indices in [0, m) -> (b, n, d)."""
    return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[2]))
