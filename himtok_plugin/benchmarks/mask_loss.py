"""What the mask loss of a training step costs in time and memory, beside a plain implementation of the same formula.

Contract: `measure_mask_loss` builds logits as an LMM would put them out, runs forward and backward of both
implementations on them and returns plain numbers. Measured is the mask loss *alone*: logits, the buffer of their
gradient (the next-token loss fills one in any case) and the gradients of the de-tokenizer are there before the clock
starts and before the memory is read, so whatever is counted, be it activations, copies or further gradients, the mask
loss brought about. Does not know of LMMs, trainers and ms-swift.

Memory is what the framework's allocator hands out at the peak, beyond what it had handed out at the start: on CUDA
`max_memory_allocated`, on a CPU the same quantity from the allocation events of the profiler. Unlike the resident size
of a process it is exact to the byte, repeatable, and the same for a process that ran something else before. It does not
see scratch space that oneDNN takes for itself, which both implementations use alike. Memory is read in a run of its
own, because the profiler costs time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    draw_levels,
)
from himtok_plugin.lmm.logit_tap import LogitTap, mask_logits
from himtok_plugin.mask_tokenizer import SIZES, MaskTokenizer, build_mask_tokenizer

CODEBOOK_SIZE = 1024  # the released one's; `tiny` has fewer codes of its own
BENCHMARK_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
MIB, GIB = 2**20, 2**30
IMPLEMENTATIONS = ("himtok", "plain")
# Dense bfloat16, by the data sheets; the first name that is part of the device's own counts.
PEAK_TFLOPS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "H800": 989, "B200": 2250, "A100": 312, "A800": 312}


@dataclass(frozen=True)
class LossBenchmark:
    """Shape of a training step.

    Args:
        batch, length, vocabulary: b, n, V of the LMM's logits; one supervised mask per sample.
        tokens: k, mask tokens per mask; every size of mask tokenizer is built for k tokens of 1024 codes.
        size: named size of the mask tokenizer.
        device: `auto` is the GPU where there is one.
        dtype: of the logits. bfloat16: the losses run under autocast, as in training.
        repeats: timed runs, of which the median counts.

    Raises:
        ValueError: a field is out of range or fields do not fit each other.
    """

    batch: int = 8
    length: int = 1024
    vocabulary: int = 151_936
    tokens: int = 32
    size: str = "tiny"
    device: str = "auto"
    dtype: str = "bfloat16"
    repeats: int = 5
    seed: int = 0

    def __post_init__(self):
        for name, least in (
            ("batch", 1),
            ("tokens", NUM_LEVELS + 1),
            ("length", self.tokens + 1),
            ("vocabulary", CODEBOOK_SIZE),
            ("repeats", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected an integer >= {least}")
        for name, known in (("size", SIZES), ("dtype", BENCHMARK_DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")

    def resolved_device(self) -> torch.device:
        """The device that `device` names.

        Raises:
            ValueError: there is none of that name here.
        """
        return resolve_device(self.device)

    def bytes_needed(self) -> int:
        """About what the plain implementation has at its peak: logits and gradient buffer, and in its backward pass
        float32 gradients of every sample and of all of them, stacked."""
        return self.batch * self.length * self.vocabulary * (2 * BENCHMARK_DTYPES[self.dtype].itemsize + 2 * 4)


def resolve_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one.

    Raises:
        ValueError: there is none of that name here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise ValueError(f"device: got {name!r}, which cannot be used: {str(error).splitlines()[0]}") from error


def known_peak(device: torch.device, dtype: str) -> float | None:
    """TFLOPS by the device's data sheet, where that is known here."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" and dtype == "bfloat16" else ""
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


class StandInLMM(nn.Module):
    """An LMM reduced to what a mask loss meets: logits, and the gradient that the next-token loss has for them.

    Args:
        logits: (b, n, V).

    Attributes:
        gradient: after a backward pass through `next_token_loss` and any other losses, their sum: (b, n, V).
    """

    def __init__(self, logits: Tensor):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros((), device=logits.device))  # makes autograd come back here
        self.logits = logits
        # One place in which the buffer lies, so that autograd owns it alone once it is taken out and may add to it.
        self.slot = [torch.zeros_like(logits)]

    @property
    def gradient(self) -> Tensor:
        return self.slot[0]

    def forward(self) -> Tensor:
        return _Logits.apply(self.anchor, self.logits, self.slot)

    def next_token_loss(self, logits: Tensor) -> Tensor:
        """() zero, whose gradient is the buffer that is there already."""
        return _NextToken.apply(logits, self.slot)


class _Logits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, anchor: Tensor, logits: Tensor, slot: list[Tensor]) -> Tensor:
        ctx.slot = slot
        return logits.detach()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.slot.append(gradient)
        return gradient.new_zeros((), dtype=torch.float32), None, None


class _NextToken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, slot: list[Tensor]) -> Tensor:
        ctx.slot = slot
        return torch.zeros((), device=logits.device)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.slot.pop(), None


@dataclass(frozen=True)
class SupervisedMasks:
    """The masks of one training step.

    Attributes:
        rows: (b * k,) int64 rows of the flattened logits that predict the codes.
        code_ids: columns of the codes.
        targets: (b, s, s) float32 squares.
        levels: (l,) int64 prefix lengths, on the CPU.
    """

    mask_tokenizer: MaskTokenizer
    rows: Tensor
    code_ids: slice
    targets: Tensor
    levels: Tensor


@dataclass(frozen=True)
class LossProblem(SupervisedMasks):
    """Those masks and logits, ready for either implementation.

    Attributes:
        predicts: (b, n) bool, `rows` as a mask.
    """

    lmm: StandInLMM
    predicts: Tensor


def mask_tokenizer_in_training(size: str, tokens: int, device: torch.device) -> MaskTokenizer:
    """A fresh mask tokenizer as in stage 2: the de-tokenizer learns, what makes codes does not."""
    mask_tokenizer = build_mask_tokenizer(size, num_mask_tokens=tokens, codebook_size=CODEBOOK_SIZE).to(device)
    mask_tokenizer.requires_grad_(False)
    for part in (mask_tokenizer.decoder, mask_tokenizer.pixel_decoder):
        part.requires_grad_(True)
    return mask_tokenizer


def build_problem(settings: LossBenchmark) -> LossProblem:
    """Random logits, mask positions, targets and levels, and a fresh mask tokenizer; the same for the same seed."""
    device = settings.resolved_device()
    torch.manual_seed(settings.seed)
    mask_tokenizer = mask_tokenizer_in_training(settings.size, settings.tokens, device)
    for parameter in mask_tokenizer.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    b, n, k = settings.batch, settings.length, settings.tokens
    # One sample's logits, repeated: drawing them all takes longer than the rest, and masks stand elsewhere in each.
    sample = torch.randn(n, settings.vocabulary, device=device, dtype=BENCHMARK_DTYPES[settings.dtype])
    logits = sample.repeat(b, 1, 1)
    del sample
    starts = torch.randint(0, n - k, (b,))
    columns = starts[:, None] + torch.arange(k)
    predicts = torch.zeros(b, n, dtype=torch.bool).scatter_(1, columns, True)
    rows = (columns + torch.arange(b)[:, None] * n).flatten()
    return LossProblem(
        mask_tokenizer=mask_tokenizer,
        rows=rows.to(device),
        code_ids=slice(settings.vocabulary - CODEBOOK_SIZE, settings.vocabulary),
        targets=random_squares(b, mask_tokenizer.config.image_size).to(device),
        levels=draw_levels(NUM_LEVELS, k),
        lmm=StandInLMM(logits),
        predicts=predicts.to(device),
    )


def random_squares(count: int, side: int) -> Tensor:
    """(count, side, side) float32: an ellipse in each."""
    centres, radii = torch.rand(count, 2) * 0.4 + 0.3, torch.rand(count, 2) * 0.2 + 0.1
    grid = (torch.arange(side) + 0.5) / side
    y, x = (((grid - centres[:, i : i + 1]) / radii[:, i : i + 1]) ** 2 for i in (0, 1))
    return (y[:, :, None] + x[:, None, :] <= 1).float()


def himtok_loss(masks: SupervisedMasks, tap: LogitTap, logits: Tensor) -> Tensor:
    """() the mask loss of stage 2 as the trainer computes it, both weights 1."""
    gathered = mask_logits(tap.logits_behind(logits), masks.code_ids, masks.rows)
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
    """() the same number, written straight from the formula (arXiv 2503.13026, section 3.3).

    Logits become float32 as a whole; every sample is picked out, decoded, blurred by a two-dimensional convolution and
    compared by itself.
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
    """(s, s) convolved with a Gaussian, zeros outside, divided by its maximum."""
    reach = int(-(-SUPPORT_SIGMAS * sigma // 1))
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=target.device) / sigma) ** 2)
    with torch.autocast(target.device.type, enabled=False):
        blurred = F.conv2d(target[None, None], torch.outer(taps, taps)[None, None], padding=reach)[0, 0]
    return blurred / blurred.max()


class LossSteps:
    """Forward and backward passes of either implementation on one problem."""

    def __init__(self, problem: LossProblem):
        self.problem = problem
        self.tap = LogitTap(problem.lmm)

    def reset(self) -> None:
        """Zeros in all gradients, which stay allocated."""
        self.problem.lmm.gradient.zero_()
        self.problem.mask_tokenizer.zero_grad(set_to_none=False)

    def run(self, implementation: str) -> Tensor:
        """One step; the gradients are in `problem` afterwards.

        Returns:
            () the mask loss, detached.
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


def measure_mask_loss(
    settings: LossBenchmark, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> dict:
    """Time and peak extra memory of the mask loss, forward and backward, in both implementations.

    Args:
        on_progress: called with runs done and runs in all.

    Returns:
        `settings`; for `himtok` and `plain` each `loss`, `seconds` (median) and `peak_extra_mib`; `ratio_seconds` and
        `ratio_peak_extra_memory`, how many times as much the plain one takes.

    Raises:
        ValueError: settings that cannot be run here.
    """
    device = settings.resolved_device()
    shape = f"batch={settings.batch}, length={settings.length}, vocabulary={settings.vocabulary}"
    check_memory(settings.bytes_needed(), device, f"{shape}: the plain implementation")
    problem = build_problem(settings)
    steps = LossSteps(problem)
    total = len(IMPLEMENTATIONS) * (1 + settings.repeats)
    losses, peaks, seconds = {}, {}, {name: [] for name in IMPLEMENTATIONS}
    for name in IMPLEMENTATIONS:  # also what warms up
        steps.reset()
        peaks[name] = measure_peak_memory(lambda name=name: losses.update({name: steps.run(name)}), device)
        on_progress(len(peaks), total)
    for repeat in range(settings.repeats):
        for i, name in enumerate(IMPLEMENTATIONS):
            steps.reset()
            seconds[name].append(measure_seconds(lambda name=name: steps.run(name), device))
            on_progress(len(IMPLEMENTATIONS) * (1 + repeat) + i + 1, total)
    result = {
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


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Refuse what will not fit, before it takes the machine down.

    Args:
        needed: bytes.
        what: needs them, for the error.

    Raises:
        ValueError: there are fewer.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        import psutil  # comes with accelerate

        free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(f"{what} needs about {needed / GIB:.1f} GiB on {device}, {free / GIB:.1f} GiB are free")


def measure_peak_memory(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that `step` has allocated at its peak, beyond what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    # Of every allocation (> 0) and release (< 0) one event; the profiler's tables add them up per operator instead.
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def measure_seconds(step: Callable[[], object], device: torch.device) -> float:
    """How long `step` takes, until the device is done with it."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    wait()
    begin = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - begin
