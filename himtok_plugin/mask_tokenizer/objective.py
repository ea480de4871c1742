"""Stage 1: what the mask tokenizer is trained to minimise, and how its codebook is kept alive.

Reconstruction (BCE + Dice) at full length and, for a quarter of the batch, on a random prefix against its coarse
target, plus the commitment, codebook and entropy terms of vector quantization (arXiv 1711.00937; entropy term arXiv
2310.05737). A fresh codebook would collapse to a few codes, so training starts without quantization, places the
codebook among the latents by k-means, and moves codes that fell out of use onto latents that are badly served.

Contract: `StageOneObjective(model, ...)(squares)` -> `StageOneOutput`. Does not know of trainers and data sets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from himtok_plugin.hierarchical_loss import DICE_WEIGHT, coarse_sigma, coarse_target, draw_levels, mask_bce, mask_dice

from .modeling import MaskTokenizer

KMEANS_ITERATIONS = 20
LATENTS_PER_CODE = 64  # latents gathered for k-means, in multiples of the codebook size
ENTROPY_TEMPERATURE = 0.1  # of the soft assignment that the entropy term looks at
WARM_UP_NOISE = 0.4  # standard deviation, about the quantization error to come, so that the decoder is used to it
PREFIX_SHARE = 0.25  # of a batch on which prefixes are decoded: the same mean as on all of it, at a quarter of the cost


@dataclass
class StageOneOutput:
    """Losses () float32 with gradient in `loss`, the rest detached; `codes` (b, k) int64, None before the k-means."""

    loss: Tensor
    terms: dict[str, Tensor]
    codes: Tensor | None


class StageOneObjective:
    """Training objective of the mask tokenizer, with the little state that a living codebook needs.

    Args:
        model: the tokenizer in training.
        continuous_warmup_steps: steps in which latents pass unquantized; then k-means places the codebook. Ignored
            when `model.config.codebook_ready` says that the codebook is in place already.
        dead_code_steps: a code unused for so many steps is moved onto a latent; 0: never.
        commitment_weight, codebook_weight, entropy_weight, prefix_loss_weight: weights of the terms.
    """

    def __init__(
        self,
        model: MaskTokenizer,
        continuous_warmup_steps: int = 0,
        dead_code_steps: int = 100,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        entropy_weight: float = 0.0,
        prefix_loss_weight: float = 1.0,
        dice_weight: float = DICE_WEIGHT,
    ):
        self.model = model
        self.continuous_warmup_steps = 0 if model.config.codebook_ready else continuous_warmup_steps
        self.dead_code_steps = dead_code_steps
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.entropy_weight = entropy_weight
        self.prefix_loss_weight = prefix_loss_weight
        self.dice_weight = dice_weight
        self.radius = model.config.code_width**0.5
        self._reservoir: list[Tensor] = []
        self._idle_steps: Tensor | None = None  # (v,) steps since a code was last used
        self._steps_to_look = dead_code_steps

    def __call__(self, squares: Tensor, step: int) -> StageOneOutput:
        """Loss of one batch.

        Args:
            squares: (b, s, s) float in [0, 1].
            step: optimiser steps done so far; decides when the warm-up ends.
        """
        latents = self.model.encode_latents(squares).float()
        if self.model.training and not self.model.config.codebook_ready:
            self._gather(latents)
            if step >= self.continuous_warmup_steps:
                self._start_codebook()
        if self.model.config.codebook_ready:
            rows, codes, terms = self._quantize(latents)
        else:
            rows, codes, terms = self._warm_up_vectors(latents, step), None, {}
        terms = {"reconstruction": self._reconstruction(rows, squares), **terms}
        if self.prefix_loss_weight and self.model.config.num_mask_tokens > 1:
            terms["prefix"] = self._prefix_reconstruction(rows, squares)
        weights = {
            "reconstruction": 1.0,
            "prefix": self.prefix_loss_weight,
            "commitment": self.commitment_weight,
            "codebook": self.codebook_weight,
            "entropy": self.entropy_weight,
        }
        loss = sum(weights[name] * term for name, term in terms.items())
        return StageOneOutput(loss, {name: term.detach() for name, term in terms.items()}, codes)

    def _reconstruction(self, rows: Tensor, target: Tensor) -> Tensor:
        prediction = self.model.decode_code_vectors(rows)
        return mask_bce(prediction, target) + self.dice_weight * mask_dice(prediction, target)

    def _prefix_reconstruction(self, rows: Tensor, squares: Tensor) -> Tensor:
        """One prefix length per step: the batch then stays rectangular, and lengths average out over steps."""
        config = self.model.config
        length = int(draw_levels(1, config.num_mask_tokens))
        sigma = coarse_sigma(length, config.num_mask_tokens, config.image_size)
        some = torch.randperm(len(rows), device=rows.device)[: max(1, round(PREFIX_SHARE * len(rows)))]
        return self._reconstruction(rows[some, :length], coarse_target(squares[some], sigma=sigma))

    def _on_sphere(self, latents: Tensor) -> Tensor:
        """Latents at length sqrt(d): quantization keeps directions only, and the decoder wants numbers of order one."""
        return F.normalize(latents, dim=-1) * self.radius

    def _warm_up_vectors(self, latents: Tensor, step: int) -> Tensor:
        rows = self._on_sphere(latents)
        if not self.model.training:
            return rows
        ramp = min(1.0, 2 * step / max(self.continuous_warmup_steps, 1))
        return rows + WARM_UP_NOISE * ramp * torch.randn_like(rows)

    def _quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantizer = self.model.quantize
        codes = quantizer.nearest_codes(latents.detach())
        directions = F.normalize(latents, dim=-1)
        if self.model.training:
            # Before the codebook enters the graph, because it is written in place.
            self._revive_dead_codes(codes, directions.detach())
        rows = quantizer.rows(codes)
        unit_rows = F.normalize(rows, dim=-1)
        terms = {
            "commitment": (directions - unit_rows.detach()).square().sum(-1).mean(),
            "codebook": (unit_rows - directions.detach()).square().sum(-1).mean(),
        }
        if self.entropy_weight:
            terms["entropy"] = self._entropy_term(directions, F.normalize(quantizer.codebook(), dim=-1))
        # Straight-through: the decoder sees the codebook row, the gradient reaches both the latent and the row.
        moved = directions * self.radius
        return rows + moved - moved.detach(), codes, terms

    @staticmethod
    def _entropy_term(directions: Tensor, unit_codebook: Tensor) -> Tensor:
        """Mean entropy of one assignment minus entropy of the mean assignment: sure of each, using all."""
        logits = directions.flatten(0, 1) @ unit_codebook.T / ENTROPY_TEMPERATURE
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        mean = p.mean(0)
        return -(p * log_p).sum(-1).mean() + (mean * mean.clamp(min=1e-9).log()).sum()

    @torch.no_grad()
    def _gather(self, latents: Tensor) -> None:
        """Keep the newest latents, enough for a k-means."""
        self._reservoir.append(F.normalize(latents.detach(), dim=-1).flatten(0, 1))
        wanted = self.model.config.codebook_size * LATENTS_PER_CODE
        while sum(len(part) for part in self._reservoir[1:]) >= wanted:
            self._reservoir.pop(0)

    @torch.no_grad()
    def _start_codebook(self) -> None:
        """Place the codebook on k-means centres of the latents; every process takes the first one's centres."""
        centres = spherical_kmeans(torch.cat(self._reservoir), self.model.config.codebook_size)
        _share_from_first_process(centres)
        self.model.quantize.place_codebook(centres * self.radius)
        self.model.config.codebook_ready = True
        self._reservoir.clear()

    @torch.no_grad()
    def _revive_dead_codes(self, codes: Tensor, directions: Tensor) -> None:
        """Move codes unused for `dead_code_steps` onto latents of this batch, the worst served ones first."""
        if not self.dead_code_steps:
            return
        size = self.model.config.codebook_size
        flat_codes = codes.flatten()
        used = torch.zeros(size, dtype=torch.int64, device=codes.device)  # bincount would wait for the device
        used.index_add_(0, flat_codes, torch.ones_like(flat_codes))
        if dist.is_initialized():
            dist.all_reduce(used)
        if self._idle_steps is None:
            self._idle_steps = torch.zeros(size, dtype=torch.int64, device=codes.device)
        self._idle_steps = torch.where(used > 0, 0, self._idle_steps + 1)
        # Looked at only every so often, since reading the result waits for the device.
        self._steps_to_look -= 1
        if self._steps_to_look > 0:
            return
        self._steps_to_look = max(self.dead_code_steps // 4, 1)
        dead = (self._idle_steps >= self.dead_code_steps).nonzero().flatten()
        if not len(dead):
            return
        flat = directions.flatten(0, 1)
        unit_rows = F.normalize(self.model.quantize.codebook(), dim=-1)
        distance = 1 - (flat * unit_rows[flat_codes]).sum(-1)
        # Drawn by distance rather than the top of it: neighbours of one bad latent would share a place. As many
        # as there are dead codes, whatever the batch: every process has to broadcast the same shape.
        chosen = torch.multinomial(distance.clamp(min=1e-6), len(dead), replacement=len(dead) > len(flat))
        rows = flat[chosen].clone()
        _share_from_first_process(rows)
        self.model.quantize.place_codebook(rows * self.radius, dead)
        self._idle_steps[dead] = 0


def _share_from_first_process(value: Tensor) -> None:
    if dist.is_initialized():
        dist.broadcast(value, src=0)


@torch.no_grad()
def spherical_kmeans(points: Tensor, count: int, iterations: int = KMEANS_ITERATIONS) -> Tensor:
    """K-means by inner product.

    Args:
        points: (m, d) float32 unit vectors.
        count: number of centres; when fewer points exist, points are repeated with a little noise.

    Returns:
        (count, d) float32 unit vectors. Centres that lose all points are moved to random points.
    """
    if len(points) < count:
        repeated = points.repeat(-(-count // len(points)), 1)
        points = F.normalize(repeated + 0.01 * torch.randn_like(repeated), dim=-1)
    centres = points[torch.randperm(len(points), device=points.device)[:count]].clone()
    for _ in range(iterations):
        nearest = torch.cat([(part @ centres.T).argmax(-1) for part in points.split(65536)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=count)
        spare = points[torch.randint(len(points), (count,), device=points.device)]
        centres = F.normalize(torch.where(counts[:, None] > 0, sums, spare), dim=-1)
    return centres


def codebook_usage(counts: Tensor) -> dict[str, float]:
    """Used codes and perplexity from (v,) counts of how often each code was chosen."""
    p = counts.double() / counts.sum().clamp(min=1)
    entropy = -(p * p.clamp(min=1e-12).log()).sum()
    return {"used_codes": int((counts > 0).sum()), "perplexity": float(entropy.exp())}
