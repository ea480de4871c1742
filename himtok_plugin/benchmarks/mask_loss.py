"""`himtok bench loss`: time and memory of the mask loss, compared with a plain implementation of the same formula.

Contract: `measure_mask_loss` creates logits of the shape of an LMM's, runs forward and backward of both implementations
and returns plain numbers. It measures the mask loss alone: the logits, the buffer of their gradient (the next-token
loss needs one in any case) and the gradients of the de-tokenizer are allocated before the measurement. Memory is
measured in a separate run, because the profiler costs time.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from himtok_plugin.hierarchical_loss import (
    DICE_EPS,
    DICE_WEIGHT,
    LOGIT_SCALE,
    NUM_LEVELS,
    PROBABILITY_CLAMP,
    SUPPORT_SIGMAS,
    HierarchicalMaskLoss,
    coarse_sigma,
    code_probabilities,
)
from himtok_plugin.lmm.logit_tap import LogitTap, gather_mask_logits

from .loss_problem import LossBenchmark, LossProblem, SupervisedMasks, build_problem
from .measuring import (
    MIB,
    OnProgress,
    check_memory,
    ignore_progress,
    measure_peak_memory,
    measure_seconds,
    resolve_device,
)

IMPLEMENTATIONS = ("himtok", "plain")


def himtok_loss(masks: SupervisedMasks, tap: LogitTap, logits: Tensor) -> Tensor:
    """The mask loss () of stage 2 as in the trainer, with both weights 1."""
    gathered = gather_mask_logits(tap.find_tapped_logits(logits), masks.code_ids, masks.rows)
    count = len(masks.targets)
    losses = HierarchicalMaskLoss(NUM_LEVELS, DICE_WEIGHT)(
        masks.mask_tokenizer,
        code_probabilities(gathered).unflatten(0, (count, -1)),
        masks.targets,
        weights=torch.full((count,), 1 / count, device=logits.device),
        levels=masks.levels,
    )
    return losses.bce + DICE_WEIGHT * losses.dice + losses.hierarchical


def plain_loss(problem: LossProblem, logits: Tensor) -> Tensor:
    """The same loss (), written directly from the formula (arXiv 2503.13026, section 3.3).

    All logits are converted to float32. Each sample is decoded, blurred by a two-dimensional convolution and compared
    on its own.
    """
    mask_tokenizer = problem.mask_tokenizer
    config = mask_tokenizer.config
    total = logits.new_zeros((), dtype=torch.float32)
    for sample, predicts, target in zip(logits.float(), problem.predicts, problem.targets, strict=True):
        probabilities = (LOGIT_SCALE * sample[predicts][:, problem.code_ids]).softmax(dim=-1)
        total = total + _plain_terms(mask_tokenizer.decode_probabilities(probabilities[None])[0], target)
        for n in problem.levels.tolist():
            prefix = probabilities.clone()
            prefix[n:] = 0
            sigma = coarse_sigma(torch.tensor(float(n)), config.num_mask_tokens, config.image_size)
            prediction = mask_tokenizer.decode_probabilities(prefix[None])[0]
            total = total + _plain_terms(prediction, _plain_blur(target, float(sigma)))
    return total / len(problem.targets)


def _plain_terms(prediction: Tensor, target: Tensor) -> Tensor:
    p = prediction.clamp(PROBABILITY_CLAMP, 1 - PROBABILITY_CLAMP)
    bce = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    overlap, total = (prediction * target).sum(), prediction.sum() + target.sum()
    return bce + DICE_WEIGHT * (1 - (2 * overlap + DICE_EPS) / (total + DICE_EPS))


def _plain_blur(target: Tensor, sigma: float) -> Tensor:
    """(s, s) convolved with a Gaussian (zero padding), divided by its maximum."""
    reach = int(-(-SUPPORT_SIGMAS * sigma // 1))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=target.device) / sigma) ** 2)
    with torch.autocast(target.device.type, enabled=False):
        blurred = F.conv2d(target[None, None], torch.outer(taps, taps)[None, None], padding=reach)[0, 0]
    return blurred / blurred.max()


class LossSteps:
    """Forward and backward passes of both implementations on one problem."""

    def __init__(self, problem: LossProblem) -> None:
        self.problem = problem
        self.tap = LogitTap(problem.lmm)

    def reset(self) -> None:
        """Set all gradients to zero; they stay allocated."""
        self.problem.lmm.gradient.zero_()
        self.problem.mask_tokenizer.zero_grad(set_to_none=False)

    def run(self, implementation: str) -> Tensor:
        """Run forward and backward; the gradients are in `problem` afterwards.

        Args:
            implementation: one of `IMPLEMENTATIONS`.
        Returns:
            The mask loss (), detached.
        """
        lmm = self.problem.lmm
        device, dtype = lmm.logits.device, lmm.logits.dtype
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16), self.tap as tap:
            logits = lmm()
            next_token = lmm.next_token_loss(logits)
            if implementation == "himtok":
                loss = himtok_loss(self.problem, tap, logits)
            else:
                loss = plain_loss(self.problem, logits)
        (next_token + loss).backward()
        return loss.detach()


def measure_mask_loss(settings: LossBenchmark, on_progress: OnProgress = ignore_progress) -> dict[str, Any]:
    """Measure time and peak extra memory of the mask loss, forward and backward, in both implementations.

    Args:
        settings: what to measure.
        on_progress: called with the runs done and the runs in all.
    Returns:
        `settings`; for `himtok` and `plain` each `loss`, `seconds` (median) and `peak_extra_mib`; `ratio_seconds` and
        `ratio_peak_extra_memory`, plain divided by himtok.
    Raises:
        ValueError: the device cannot be used, or its memory is too small.
    """
    device = resolve_device(settings.device)
    shape = f"batch={settings.batch}, length={settings.length}, vocabulary={settings.vocabulary}"
    check_memory(settings.bytes_needed(), device, f"{shape}: the plain implementation")
    problem = build_problem(settings)
    steps = LossSteps(problem)
    total = len(IMPLEMENTATIONS) * (1 + settings.repeats)
    losses: dict[str, Tensor] = {}
    peaks: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}

    def run_and_keep_loss(name: str) -> None:
        losses[name] = steps.run(name)

    for name in IMPLEMENTATIONS:  # these runs warm up as well
        steps.reset()
        peaks[name] = measure_peak_memory(partial(run_and_keep_loss, name), device)
        on_progress(len(peaks), total)
    for repeat in range(settings.repeats):
        for i, name in enumerate(IMPLEMENTATIONS):
            steps.reset()
            seconds[name].append(measure_seconds(partial(steps.run, name), device))
            on_progress(len(IMPLEMENTATIONS) * (1 + repeat) + i + 1, total)
    result: dict[str, dict[str, float]] = {
        name: {
            "loss": float(losses[name]),
            "seconds": statistics.median(seconds[name]),
            "peak_extra_mib": peaks[name] / MIB,
        }
        for name in IMPLEMENTATIONS
    }
    ours, plain = (result[name] for name in IMPLEMENTATIONS)
    return {
        "settings": {**asdict(settings), "device": str(device), "image_size": problem.targets.shape[-1]},
        **result,
        "ratio_seconds": plain["seconds"] / ours["seconds"],
        "ratio_peak_extra_memory": plain["peak_extra_mib"] / ours["peak_extra_mib"],
    }
