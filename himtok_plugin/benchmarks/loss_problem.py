"""The input of `himtok bench loss`: random logits in place of an LMM, masks to predict, and a mask tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from himtok_plugin.hierarchical_loss import NUM_LEVELS, draw_prefix_lengths
from himtok_plugin.mask_tokenizer import SIZES, MaskTokenizer, build_mask_tokenizer

from .measuring import BENCHMARK_DTYPES, random_squares, resolve_device

CODEBOOK_SIZE = 1024  # of the released mask tokenizer; by default `tiny` has fewer codes


@dataclass(frozen=True)
class LossBenchmark:
    """Shape of a training step.

    Args:
        batch, length, vocabulary: b, n, V of the LMM's logits; one supervised mask per sample.
        tokens: k, mask tokens per mask; every size of mask tokenizer is built for k tokens of 1024 codes.
        size: named size of the mask tokenizer.
        device: `auto` is the GPU if there is one, else the CPU.
        dtype: of the logits; with bfloat16 the losses run under autocast, as in training.
        repeats: number of timed runs; the median is reported.
        seed: of the random logits, masks and weights.

    Raises:
        ValueError: a field is out of range, or `length` is too short for `tokens`.
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

    def __post_init__(self) -> None:
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

    def bytes_needed(self) -> int:
        """Approximate peak memory of the plain implementation.

        Logits and their gradient buffer; in the backward pass float32 gradients of each sample and of all, stacked.
        """
        return self.batch * self.length * self.vocabulary * (2 * BENCHMARK_DTYPES[self.dtype].itemsize + 2 * 4)


class StandInLMM(nn.Module):
    """Stands for an LMM: its logits, and the gradient of a next-token loss with respect to them.

    Args:
        logits: (b, n, V).

    Attributes:
        gradient: (b, n, V), the sum of the gradients of `next_token_loss` and other losses, after a backward pass.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros((), device=logits.device))  # autograd needs an input with a gradient
        self.logits = logits
        # A list of one buffer: once popped from it, autograd holds the only reference and may add in place.
        self.slot = [torch.zeros_like(logits)]

    @property
    def gradient(self) -> Tensor:
        return self.slot[0]

    def forward(self) -> Tensor:
        return _Logits.apply(self.anchor, self.logits, self.slot)

    def next_token_loss(self, logits: Tensor) -> Tensor:
        """A loss () of zero whose gradient is the existing buffer."""
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
        mask_tokenizer: its de-tokenizer is trained.
        rows: (b * k,) int64 indices into the logits (b * n, V) that predict the codes.
        code_ids: vocabulary ids of the codes, the columns of the logits.
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
    """Masks and logits for both implementations.

    Attributes:
        lmm: holds the logits.
        predicts: bool (b, n), True at `rows`.
    """

    lmm: StandInLMM
    predicts: Tensor


def build_stage_two_tokenizer(size: str, tokens: int, device: torch.device) -> MaskTokenizer:
    """A mask tokenizer with random weights as in stage 2: only the de-tokenizer is trained."""
    mask_tokenizer = build_mask_tokenizer(size, num_mask_tokens=tokens, codebook_size=CODEBOOK_SIZE).to(device)
    mask_tokenizer.requires_grad_(False)
    for part in (mask_tokenizer.decoder, mask_tokenizer.pixel_decoder):
        part.requires_grad_(True)
    return mask_tokenizer


def build_problem(settings: LossBenchmark) -> LossProblem:
    """Random logits, mask positions, targets, levels and mask tokenizer, determined by the seed."""
    device = resolve_device(settings.device)
    torch.manual_seed(settings.seed)
    mask_tokenizer = build_stage_two_tokenizer(settings.size, settings.tokens, device)
    for parameter in mask_tokenizer.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    b, n, k = settings.batch, settings.length, settings.tokens
    # The same logits for every sample: drawing all takes longer than the rest. Mask positions differ per sample.
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
        levels=draw_prefix_lengths(NUM_LEVELS, k),
        lmm=StandInLMM(logits),
        predicts=predicts.to(device),
    )
