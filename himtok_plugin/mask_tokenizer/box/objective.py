"""The training objective of stage 1 for mask tokenizers of the code scheme "box".

Masks are compared on the canvas, where all objects are equally large, and each mask by itself: with sums over the
square or the batch, a small object among large ones would weigh nothing. Training begins with a few steps that only
collect canvases. From these, principal components and residual k-means place encoder, decoder and codebooks; then all
of them are trained together.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from himtok_plugin.hierarchical_loss import DICE_WEIGHT, bce_per_mask, dice_per_mask

from ..modeling import MaskTokenizer
from ..objective import StageOneOutput, broadcast_from_first_process, keep_latest
from .box_codes import COORDINATES
from .codebook_fit import fit_components, fit_residual_codebooks
from .coders import BoxFrameDecoder, BoxFrameEncoder
from .residual_quantizer import ResidualQuantizer

CANVASES_PER_CODE = 128  # collected to place the codebooks, per code of a codebook
CANVASES_FOR_COMPONENTS = 32768  # of which the components are computed


class BoxObjective:
    """Training objective of the mask tokenizer, and the canvases that it collects in the beginning.

    Args:
        model: the mask tokenizer to train, of the code scheme "box".
        collecting_steps: optimizer steps that collect canvases. Ignored if `model.config.codebook_ready` is set.
        commitment_weight: weight of the distance of the encoder's output from its codes.
        prefix_loss_weight: weight of the reconstruction from prefixes; each mask gets a prefix length of its own.
        dice_weight: weight of Dice relative to BCE.
    """

    def __init__(
        self,
        model: MaskTokenizer,
        collecting_steps: int = 0,
        commitment_weight: float = 0.25,
        prefix_loss_weight: float = 1.0,
        dice_weight: float = DICE_WEIGHT,
    ):
        self.model = model
        self.collecting_steps = 0 if model.config.codebook_ready else collecting_steps
        self.commitment_weight = commitment_weight
        self.prefix_loss_weight = prefix_loss_weight
        self.dice_weight = dice_weight
        self._collected: list[Tensor] = []  # (b, c, c) uint8 each, on the CPU

    @property
    def encoder(self) -> BoxFrameEncoder:
        assert isinstance(self.model.encoder, BoxFrameEncoder)
        return self.model.encoder

    @property
    def decoder(self) -> BoxFrameDecoder:
        assert isinstance(self.model.decoder, BoxFrameDecoder)
        return self.model.decoder

    @property
    def quantizer(self) -> ResidualQuantizer:
        assert isinstance(self.model.quantize, ResidualQuantizer)
        return self.model.quantize

    def __call__(self, squares: Tensor, step: int) -> StageOneOutput:
        """Compute the loss of a batch.

        Args:
            squares: (b, s, s) float in [0, 1].
            step: number of optimizer steps so far.
        """
        latents, canvases = self.encoder(squares, self.quantizer)
        if self.model.training and not self.model.config.codebook_ready:
            self._collect(canvases)
            if step >= self.collecting_steps:
                self._place()
                latents = torch.cat([latents[:, :COORDINATES], self.encoder.describe(canvases)], dim=1)
        shapes = latents[:, COORDINATES:]
        if not self.model.config.codebook_ready:
            terms = {"reconstruction": self._reconstruction_loss(shapes, canvases)}
            return StageOneOutput.of_terms(terms, {"reconstruction": 1.0}, None)
        codes = self.quantizer.nearest_codes(latents.detach())
        shape_vectors = self.quantizer.code_vectors(codes)[:, self.model.config.box_tokens :, COORDINATES:]
        sums = shape_vectors.cumsum(dim=1)
        # Straight-through: the decoder gets the sum of code vectors, the gradient reaches the encoder as well.
        through = shapes - shapes.detach()
        terms = {
            "reconstruction": self._reconstruction_loss(sums[:, -1] + through, canvases),
            "commitment": (shapes - sums[:, -1].detach()).square().mean(),
        }
        weights = {
            "reconstruction": 1.0,
            "commitment": self.commitment_weight,
            "prefix": self.prefix_loss_weight,
        }
        if self.prefix_loss_weight:
            lengths = torch.randint(sums.shape[1], (len(sums),), device=sums.device)  # of the shape's codes, with none
            with_none = torch.cat([torch.zeros_like(sums[:, :1]), sums], dim=1)
            prefixes = with_none[torch.arange(len(sums), device=sums.device), lengths]
            terms["prefix"] = self._reconstruction_loss(prefixes, canvases)
        return StageOneOutput.of_terms(terms, weights, codes)

    def _reconstruction_loss(self, shapes: Tensor, canvases: Tensor) -> Tensor:
        prediction = self.model.to_probabilities(self.decoder.draw(shapes))
        return (bce_per_mask(prediction, canvases) + self.dice_weight * dice_per_mask(prediction, canvases)).mean()

    def _collect(self, canvases: Tensor) -> None:
        """Keep the latest canvases."""
        pixels = (canvases * 255).round().to("cpu", torch.uint8)
        keep_latest(self._collected, pixels, self.model.config.codebook_size * CANVASES_PER_CODE)

    @torch.no_grad()
    def _place(self) -> None:
        """Place encoder, decoder and codebooks; all processes use those of the first one."""
        config, device = self.model.config, self.encoder.components.weight.device
        canvases = torch.cat(self._collected)
        if len(canvases) < config.codebook_size:
            warnings.warn(
                f"continuous_warmup_steps={self.collecting_steps}: got {len(canvases)} shapes for codebooks of "
                f"{config.codebook_size} codes, expected about 100 for each code: the masks will be coarse",
                stacklevel=2,
            )
        chosen = canvases[torch.randperm(len(canvases))[:CANVASES_FOR_COMPONENTS]].to(device).float() / 255
        mean, components = fit_components(chosen, config.code_width - COORDINATES)
        for value in (mean, components):
            broadcast_from_first_process(value)
        self.encoder.components.weight.copy_(components)
        self.encoder.components.bias.copy_(-components @ mean)
        self.decoder.components.weight.copy_(components.T)
        self.decoder.components.bias.copy_(mean)
        shapes = torch.cat([self.encoder.describe(part.to(device).float() / 255) for part in canvases.split(4096)])
        tokens = config.num_mask_tokens - config.box_tokens
        for position, vectors in enumerate(fit_residual_codebooks(shapes, tokens, config.codebook_size)):
            broadcast_from_first_process(vectors)
            self.quantizer.set_shape_codebook(position, vectors)
        config.codebook_ready = True
        self._collected.clear()
