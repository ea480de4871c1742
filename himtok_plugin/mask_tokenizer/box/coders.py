"""Encoder and decoder of the code scheme "box": the object's bounding box, and its shape on a canvas in that box.

Because the canvas always shows the object at full size, a small object has as many codes for its outline as a large
one. The shape is a point in a space of a few dozen values: its principal components, as in DCT-Mask (arXiv
2011.09876) and in PCA masks, with a correction by a small network on either side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..configuration import MaskTokenizerConfig
from .box_codes import COORDINATES, boxes_to_coordinates, coordinates_to_boxes
from .framing import crop_to_canvas, find_boxes, paste_canvas
from .residual_quantizer import ResidualQuantizer


class ZeroLinear(nn.Linear):
    """A linear layer whose weights are zero before training."""


class Correction(nn.Module):
    """Two linear layers whose output is zero before training."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        super().__init__()
        self.input = nn.Linear(inputs, hidden)
        self.output = ZeroLinear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(F.gelu(self.input(x)))


class BoxFrameEncoder(nn.Module):
    """Squares to one latent each: the coordinates of the box and the shape in the box that its codes will name."""

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__()
        self.canvas_size = config.canvas_size
        self.box_tokens, self.codebook_size = config.box_tokens, config.codebook_size
        pixels, shape = config.canvas_size**2, config.code_width - COORDINATES
        self.components = nn.Linear(pixels, shape)
        self.correction = Correction(pixels, config.shape_hidden_width, shape)

    def forward(self, squares: Tensor, quantizer: ResidualQuantizer) -> tuple[Tensor, Tensor]:
        """Encode squares.

        Args:
            squares: (b, s, s) float in [0, 1].
            quantizer: rounds the box before the shape is seen in it.

        Returns:
            The latents (b, d) float32 with gradient, and what the shape's part shows, canvases (b, c, c) float32.
        """
        with torch.no_grad():
            coordinates = boxes_to_coordinates(find_boxes(squares), self.box_tokens, self.codebook_size)
            boxes = self.to_boxes(quantizer.round_boxes(coordinates))
            canvases = crop_to_canvas(squares, boxes, self.canvas_size)
        return torch.cat([coordinates, self.describe(canvases)], dim=1), canvases

    def to_boxes(self, coordinates: Tensor) -> Tensor:
        """Coordinates (b, 4) to boxes (b, 4)."""
        return coordinates_to_boxes(coordinates, self.box_tokens, self.codebook_size)

    def describe(self, canvases: Tensor) -> Tensor:
        """Canvases (b, c, c) to shapes (b, d - 4) float32."""
        pixels = canvases.flatten(1).to(self.components.weight.dtype)
        return (self.components(pixels) + self.correction(pixels)).float()


@dataclass(frozen=True)
class FramedShapes:
    """Shapes and the boxes that they belong into: canvases (b, c, c) and boxes (b, 4), float32."""

    canvases: Tensor
    boxes: Tensor


class BoxFrameDecoder(nn.Module):
    """Code vectors to canvases in boxes.

    Missing codes add nothing: a prefix is a coarser box with the mean shape, then the box with a coarser shape.
    """

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__()
        self.canvas_size = config.canvas_size
        self.box_tokens, self.codebook_size = config.box_tokens, config.codebook_size
        pixels, shape = config.canvas_size**2, config.code_width - COORDINATES
        self.components = nn.Linear(shape, pixels)
        self.correction = Correction(shape, config.shape_hidden_width, pixels)

    def forward(self, code_vectors: Tensor) -> FramedShapes:
        """(b, n, d) code vectors, 1 <= n <= k."""
        total = code_vectors.float().sum(dim=1)
        boxes = coordinates_to_boxes(total[:, :COORDINATES], self.box_tokens, self.codebook_size)
        return FramedShapes(self.draw(total[:, COORDINATES:]), boxes)

    def draw(self, shapes: Tensor) -> Tensor:
        """Shapes (b, d - 4) to canvases (b, c, c) float32, about 0 outside and 1 inside the object."""
        shapes = shapes.to(self.components.weight.dtype)
        pixels = self.components(shapes) + self.correction(shapes)
        return pixels.float().unflatten(1, (self.canvas_size, self.canvas_size))


class CanvasPlacement(nn.Module):
    """Draws the canvases into their boxes. It has no weights."""

    def __init__(self, config: MaskTokenizerConfig):
        super().__init__()
        self.side = config.image_size

    def forward(self, shapes: FramedShapes) -> Tensor:
        """(b, s, s) float32."""
        return paste_canvas(shapes.canvases, shapes.boxes, self.side)
