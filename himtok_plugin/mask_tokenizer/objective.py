"""The training objective of the mask tokenizer in stage 1.

The loss consists of the reconstruction (BCE + Dice) from all codes, the reconstruction from a random prefix for a
quarter of the batch, and the commitment, codebook and entropy terms of vector quantization (arXiv 1711.00937; entropy
term arXiv 2310.05737). A random codebook would collapse to a few codes. Training therefore starts without quantization,
initializes the codebook by k-means on latents, and moves unused codes to latents with a large quantization error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from himtok_plugin.hierarchical_loss import (
    DICE_WEIGHT,
    coarse_sigma,
    coarse_target,
    draw_prefix_lengths,
    mask_bce,
    mask_dice,
)

from .modeling import MaskTokenizer
from .quantizer import Quantizer

KMEANS_ITERATIONS = 20
LATENTS_PER_CODE = 64  # latents collected for k-means, per code of the codebook
ENTROPY_TEMPERATURE = 0.1  # of the soft assignment in the entropy term
WARM_UP_NOISE = 0.4  # standard deviation, similar to the quantization error that follows the warm-up
PREFIX_SHARE = 0.25  # of a batch for which prefixes are decoded: the same expected loss at a quarter of the cost


@dataclass
class StageOneOutput:
    """Output of the objective.

    Attributes:
        loss: () float32, with gradient.
        terms: name -> () float32, detached.
        codes: (b, k) int64; None during the warm-up without quantization.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    codes: Tensor | None

    @classmethod
    def of_terms(
        cls, terms: Mapping[str, Tensor], weights: Mapping[str, float], codes: Tensor | None
    ) -> StageOneOutput:
        """The weighted sum of terms, () float32 each with gradient; all have weights, one is "reconstruction"."""
        zero = terms["reconstruction"].new_zeros(())
        loss = sum((weights[name] * term for name, term in terms.items()), start=zero)
        return cls(loss, {name: term.detach() for name, term in terms.items()}, codes)


class StageOneObjective:
    """Training objective of the mask tokenizer, and the state of its codebook in training.

    Args:
        model: the mask tokenizer to train.
        continuous_warmup_steps: steps without quantization, after which k-means initializes the codebook. Ignored if
            `model.config.codebook_ready` is set.
        dead_code_steps: codes that are unused for this number of optimizer steps, in all processes, are moved to a
            latent; 0: never.
        commitment_weight, codebook_weight, entropy_weight, prefix_loss_weight: weights of the terms.
        dice_weight: weight of Dice relative to BCE.
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
        self._step = -1  # the optimizer step whose batches `_used` counts
        self._used: Tensor | None = None  # (v,) int64, how often a code was used in this step
        self._idle_steps: Tensor | None = None  # (v,) int64, finished steps since a code was last used
        self._steps_until_check = dead_code_steps

    @property
    def _quantizer(self) -> Quantizer:
        assert isinstance(self.model.quantize, Quantizer)
        return self.model.quantize

    def __call__(self, squares: Tensor, step: int) -> StageOneOutput:
        """Compute the loss of a batch.

        Args:
            squares: (b, s, s) float in [0, 1].
            step: number of optimizer steps so far; the same for all batches whose gradients are accumulated.
        """
        latents = self.model.encode_to_latents(squares).float()
        if self.model.training and not self.model.config.codebook_ready:
            self._collect_latents(latents)
            if step >= self.continuous_warmup_steps:
                self._initialize_codebook()
        if self.model.config.codebook_ready:
            counts = self.model.training and self.dead_code_steps > 0
            if counts and step != self._step:
                # This changes the codebook in place, so it must come before the codebook is part of the graph.
                self._finish_step(latents.detach())
                self._step = step
            code_vectors, codes, terms = self._quantize(latents)
            if counts:
                self._count_usage(codes)
        else:
            code_vectors, codes, terms = self._warm_up_vectors(latents, step), None, {}
        terms = {"reconstruction": self._reconstruction_loss(code_vectors, squares), **terms}
        if self.prefix_loss_weight and self.model.config.num_mask_tokens > 1:
            terms["prefix"] = self._prefix_loss(code_vectors, squares)
        weights = {
            "reconstruction": 1.0,
            "prefix": self.prefix_loss_weight,
            "commitment": self.commitment_weight,
            "codebook": self.codebook_weight,
            "entropy": self.entropy_weight,
        }
        return StageOneOutput.of_terms(terms, weights, codes)

    def _reconstruction_loss(self, code_vectors: Tensor, target: Tensor) -> Tensor:
        prediction = self.model.decode_code_vectors(code_vectors)
        return mask_bce(prediction, target) + self.dice_weight * mask_dice(prediction, target)

    def _prefix_loss(self, code_vectors: Tensor, squares: Tensor) -> Tensor:
        """Reconstruction loss for one random prefix length, which all masks of a step share."""
        config = self.model.config
        length = int(draw_prefix_lengths(1, config.num_mask_tokens))
        sigma = coarse_sigma(length, config.num_mask_tokens, config.image_size)
        count = max(1, round(PREFIX_SHARE * len(squares)))
        chosen = torch.randperm(len(squares), device=code_vectors.device)[:count]
        return self._reconstruction_loss(code_vectors[chosen, :length], coarse_target(squares[chosen], sigma=sigma))

    def _project_to_sphere(self, latents: Tensor) -> Tensor:
        """Scale latents to length sqrt(d). Quantization keeps directions only, and the decoder needs values near 1."""
        return F.normalize(latents, dim=-1) * self.radius

    def _warm_up_vectors(self, latents: Tensor, step: int) -> Tensor:
        vectors = self._project_to_sphere(latents)
        if not self.model.training:
            return vectors
        ramp = min(1.0, 2 * step / max(self.continuous_warmup_steps, 1))
        return vectors + WARM_UP_NOISE * ramp * torch.randn_like(vectors)

    def _quantize(self, latents: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        quantizer = self._quantizer
        codes = quantizer.nearest_codes(latents.detach())
        directions = F.normalize(latents, dim=-1)
        code_vectors = quantizer.code_vectors(codes)
        unit_vectors = F.normalize(code_vectors, dim=-1)
        terms = {
            "commitment": (directions - unit_vectors.detach()).square().sum(-1).mean(),
            "codebook": (unit_vectors - directions.detach()).square().sum(-1).mean(),
        }
        if self.entropy_weight:
            terms["entropy"] = self._entropy_term(directions, F.normalize(quantizer.codebook(), dim=-1))
        # Straight-through: the decoder gets the code vector, the gradient reaches both the latent and the code vector.
        moved = directions * self.radius
        return code_vectors + moved - moved.detach(), codes, terms

    @staticmethod
    def _entropy_term(directions: Tensor, unit_codebook: Tensor) -> Tensor:
        """Mean entropy of the assignments minus entropy of the mean assignment.

        It is low if each latent clearly belongs to one code and all codes are used equally.
        """
        logits = directions.flatten(0, 1) @ unit_codebook.T / ENTROPY_TEMPERATURE
        log_p = logits.log_softmax(-1)
        p = log_p.exp()
        mean = p.mean(0)
        return -(p * log_p).sum(-1).mean() + (mean * mean.clamp(min=1e-9).log()).sum()

    @torch.no_grad()
    def _collect_latents(self, latents: Tensor) -> None:
        """Store the latest latents for k-means."""
        directions = F.normalize(latents.detach(), dim=-1).flatten(0, 1)
        keep_latest(self._reservoir, directions, self.model.config.codebook_size * LATENTS_PER_CODE)

    @torch.no_grad()
    def _initialize_codebook(self) -> None:
        """Set the code vectors to k-means centres of the latents; all processes use those of the first one."""
        centres = spherical_kmeans(torch.cat(self._reservoir), self.model.config.codebook_size)
        broadcast_from_first_process(centres)
        self._quantizer.set_code_vectors(centres * self.radius)
        self.model.config.codebook_ready = True
        self._reservoir.clear()

    @torch.no_grad()
    def _count_usage(self, codes: Tensor) -> None:
        """Count the codes of a batch to the current optimizer step."""
        flat = codes.flatten()
        if self._used is None:
            self._used = torch.zeros(self.model.config.codebook_size, dtype=torch.int64, device=codes.device)
        self._used.index_add_(0, flat, torch.ones_like(flat))  # bincount would wait for the device

    @torch.no_grad()
    def _finish_step(self, latents: Tensor) -> None:
        """Count the optimizer step that is over, and move codes that were not used for `dead_code_steps`.

        Args:
            latents: (b, k, d) of the next step's first batch.
        """
        if self._used is None:
            return
        used, self._used = self._used, None
        if dist.is_initialized():
            dist.all_reduce(used)
        if self._idle_steps is None:
            self._idle_steps = torch.zeros_like(used)
        self._idle_steps = torch.where(used > 0, 0, self._idle_steps + 1)
        # Checked every few steps only, because reading the result waits for the device.
        self._steps_until_check -= 1
        if self._steps_until_check > 0:
            return
        self._steps_until_check = max(self.dead_code_steps // 4, 1)
        dead = (self._idle_steps >= self.dead_code_steps).nonzero().flatten()
        if len(dead):
            self._revive(dead, F.normalize(latents, dim=-1).flatten(0, 1))
            self._idle_steps[dead] = 0

    def _revive(self, dead: Tensor, directions: Tensor) -> None:
        """Move code vectors to latents with a large distance to their nearest code vector.

        Args:
            dead: (m,) int64 codes, the same in all processes.
            directions: (n, d) unit vectors of the latents; those of the first process are used.
        """
        unit_codebook = F.normalize(self._quantizer.codebook(), dim=-1)
        distance = 1 - (directions @ unit_codebook.T).amax(-1)
        # Latents are drawn with probabilities proportional to their distance, because the farthest ones may all be
        # neighbours. One is drawn per dead code, because all processes must broadcast the same shape.
        chosen = torch.multinomial(distance.clamp(min=1e-6), len(dead), replacement=len(dead) > len(directions))
        vectors = directions[chosen].clone()
        broadcast_from_first_process(vectors)
        self._quantizer.set_code_vectors(vectors * self.radius, dead)


def keep_latest(parts: list[Tensor], part: Tensor, wanted: int) -> None:
    """Append a part (m, …), and drop the oldest ones as long as `wanted` entries are left."""
    parts.append(part)
    while sum(len(kept) for kept in parts[1:]) >= wanted:
        parts.pop(0)


def broadcast_from_first_process(value: Tensor) -> None:
    """Overwrite a tensor with that of the first process, if there are several."""
    if dist.is_initialized():
        dist.broadcast(value, src=0)


@torch.no_grad()
def spherical_kmeans(points: Tensor, count: int, iterations: int = KMEANS_ITERATIONS) -> Tensor:
    """Cluster unit vectors by k-means with the inner product.

    Args:
        points: (m, d) float32 unit vectors.
        count: number of centres. If there are fewer points, they are repeated with a little noise.
        iterations: number of assignments and updates.

    Returns:
        (count, d) float32 unit vectors. Centres without points are moved to random points.
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


def measure_codebook_usage(counts: Tensor) -> dict[str, float]:
    """Number of used codes and perplexity, from (v,) counts of how often each code was chosen."""
    p = counts.double() / counts.sum().clamp(min=1)
    entropy = -(p * p.clamp(min=1e-12).log()).sum()
    return {"used_codes": int((counts > 0).sum()), "perplexity": float(entropy.exp())}
