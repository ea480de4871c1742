"""`himtok bench step`: speed and memory of a whole training step of stage 2, and the share of the mask loss.

Contract: `measure_training_step` builds an InternVL of a named size and a mask tokenizer, both with random weights, and
times whole steps: encoding the masks, forward, next-token and mask losses, backward, AdamW. The same samples are padded
to one length and packed into one sequence (sdpa attention of transformers in both cases), with the mask loss and
without. The mask loss is the trainer's code (`hierarchical_loss.py`).

FLOPs are those of the model: of each sample's forward pass, counted by torch, times three for the backward pass (arXiv
2204.02311, appendix B). Additional FLOPs of padding and gradient checkpointing do not count. The frozen encoder counts
once.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from himtok_plugin.hierarchical_loss import NUM_LEVELS, draw_prefix_lengths
from himtok_plugin.lmm.logit_tap import LogitTap
from himtok_plugin.mask_tokenizer import SIZES

from .loss_problem import CODEBOOK_SIZE, SupervisedMasks, build_stage_two_tokenizer
from .mask_loss import himtok_loss
from .measuring import (
    BENCHMARK_DTYPES,
    GIB,
    OnProgress,
    check_memory,
    find_peak_tflops,
    ignore_progress,
    measure_peak_memory,
    measure_seconds,
    random_squares,
    resolve_device,
)
from .random_lmm import LMMS, build_random_lmm, count_image_tokens, count_parameters, lmm_config

IGNORED_LABEL = -100  # of tokens without a loss
LAYOUTS = ("padded", "packed")


@dataclass(frozen=True)
class StepBenchmark:
    """A training step.

    Args:
        lmm: name in `LMMS`.
        size: named size of the mask tokenizer, built for `tokens` tokens of 1024 codes.
        batch: number of samples, with one image and one mask each; their lengths decrease evenly from `length` to the
            shortest possible.
        length: tokens of the longest sample.
        tokens: k, mask tokens per mask.
        device: `auto` is the GPU if there is one, else the CPU.
        dtype: of the LMM's weights and optimizer; with bfloat16 the step runs under autocast, as in training.
        gradient_checkpointing: of the LMM.
        peak_tflops: of the device; None: by its data sheet, if `measuring.PEAK_TFLOPS` lists it.
        repeats: number of timed steps of each kind; the median is reported.
        seed: of the random samples and weights.

    Raises:
        ValueError: a field is out of range, or `length` is too short for an image and a mask.
    """

    lmm: str = "2b"
    size: str = "large"
    batch: int = 8
    length: int = 1024
    tokens: int = 32
    device: str = "auto"
    dtype: str = "bfloat16"
    gradient_checkpointing: bool = True
    peak_tflops: float | None = None
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("lmm", LMMS), ("size", SIZES), ("dtype", BENCHMARK_DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name, value in (("batch", 1), ("tokens", NUM_LEVELS + 1), ("length", self.shortest), ("repeats", 1)):
            if getattr(self, name) < value:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected an integer >= {value}")
        if self.peak_tflops is not None and not self.peak_tflops > 0:  # true for NaN as well
            raise ValueError(f"peak_tflops: got {self.peak_tflops}, expected a number > 0")

    @property
    def shortest(self) -> int:
        """Tokens of the shortest sample: an image, a mask with its start and end, one token of text."""
        return count_image_tokens(lmm_config(self.lmm)) + self.tokens + 3


@dataclass(frozen=True)
class Batch:
    """Inputs of the LMM; `positions` (b, k) are the indices of the codes in the flattened `input_ids`."""

    inputs: dict[str, Tensor]
    positions: Tensor


class TrainingStep:
    """The LMM, the mask tokenizer, the optimizer and the samples of a step.

    Raises:
        ValueError: the device cannot be used, or its memory is too small.
    """

    def __init__(self, settings: StepBenchmark) -> None:
        self.settings, config = settings, lmm_config(settings.lmm)
        self.device, dtype = resolve_device(settings.device), BENCHMARK_DTYPES[settings.dtype]
        text, vision, b = config.text_config, config.vision_config, settings.batch
        assert isinstance(text, PreTrainedConfig) and isinstance(vision, PreTrainedConfig)  # made by `lmm_config`
        vocabulary, side = text.vocab_size, vision.image_size[0]
        # Weights, gradients and AdamW's two states; logits as `LossBenchmark.bytes_needed` counts them.
        logits = b * settings.length * vocabulary * (2 * dtype.itemsize + 2 * 4)
        needed = count_parameters(config) * 4 * dtype.itemsize + logits
        check_memory(needed, self.device, f"lmm={settings.lmm!r}: a step")
        torch.manual_seed(settings.seed)
        self.lmm = build_random_lmm(config, dtype, self.device)
        if settings.gradient_checkpointing:
            self.lmm.gradient_checkpointing_enable({"use_reentrant": False})
        self.tap = LogitTap(self.lmm.get_output_embeddings())
        self.mask_tokenizer = build_stage_two_tokenizer(settings.size, settings.tokens, self.device)
        trained = [p for model in (self.lmm, self.mask_tokenizer) for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=self.device.type == "cuda")
        self.first_code = vocabulary - CODEBOOK_SIZE  # preceded by the ids of mask end, mask start and image token
        self.lmm.config.image_token_id = self.first_code - 3
        self.squares = random_squares(b, self.mask_tokenizer.config.image_size).to(self.device)
        self.images = torch.randn(b, 3, side, side, device=self.device, dtype=dtype)
        self.levels = draw_prefix_lengths(NUM_LEVELS, settings.tokens)
        self.samples = [self._sample(int(n)) for n in torch.linspace(settings.length, settings.shortest, b)]

    def _sample(self, length: int) -> Tensor:
        """Token ids (length,): an image, random text, a mask whose codes are filled in by `loss`."""
        k, image = self.settings.tokens, self.lmm.config.image_token_id
        ids = torch.randint(0, image, (length,))
        ids[: count_image_tokens(self.lmm.config)] = image
        ids[-k - 2], ids[-1] = self.first_code - 2, self.first_code - 1
        return ids

    def batch(self, layout: str, chosen: slice = slice(None)) -> Batch:
        """Collate the samples, or some of them, in one of `LAYOUTS`."""
        rows, k = self.samples[chosen], self.settings.tokens
        lengths = torch.tensor([len(row) for row in rows])
        learned = [torch.arange(len(row)) >= len(row) - k - 2 for row in rows]  # the answer is the mask
        if layout == "packed":
            ids, answer = torch.cat(rows)[None], torch.cat(learned)[None]
            further = {"position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None]}
            ends = lengths.cumsum(0)
        else:
            ids, answer = (torch.nn.utils.rnn.pad_sequence(each, batch_first=True) for each in (rows, learned))
            further = {"attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}
            ends = torch.arange(len(rows)) * ids.shape[1] + lengths
        inputs = {
            "input_ids": ids,
            "labels": ids.where(answer, IGNORED_LABEL),
            "pixel_values": self.images[chosen],
            **further,
        }
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        return Batch(inputs, (ends[:, None] - 1 - k + torch.arange(k)).to(self.device))

    def encode(self) -> Tensor:
        """Encode the masks to token ids (b, k), as in training without offline codes."""
        return self.mask_tokenizer.encode(self.squares) + self.first_code

    def loss(self, batch: Batch, codes: Tensor, mask_loss: bool = True) -> Tensor:
        """The loss () of samples with these code ids (b, k): next-token loss, and mask loss unless disabled."""
        for name in ("input_ids", "labels"):
            batch.inputs[name].view(-1)[batch.positions] = codes
        half = self.settings.dtype == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half), self.tap as tap:
            outputs = self.lmm(**batch.inputs, use_cache=False)
            if not mask_loss:
                return outputs.loss
            ids, targets = slice(self.first_code, self.first_code + CODEBOOK_SIZE), self.squares[: len(codes)]
            masks = SupervisedMasks(self.mask_tokenizer, batch.positions.flatten() - 1, ids, targets, self.levels)
            return outputs.loss + himtok_loss(masks, tap, outputs.logits)

    def run(self, batch: Batch, mask_loss: bool = True) -> None:
        """Run a whole step."""
        self.loss(batch, self.encode(), mask_loss).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def flops(self) -> int:
        """FLOPs of the model in a step; see the module."""
        once, thrice = (FlopCounterMode(display=False) for _ in range(2))
        with sdpa_kernel(SDPBackend.MATH):  # attention as matrix products, which torch counts on every device
            with once:
                codes = self.encode()
            with thrice:
                for i in range(len(self.samples)):
                    self.loss(self.batch("padded", slice(i, i + 1)), codes[i : i + 1])
        return once.get_total_flops() + 3 * thrice.get_total_flops()

    def bytes_held(self) -> int:
        """Bytes of parameters and optimizer states; gradients exist during a step only."""
        states = (value for state in self.optimizer.state.values() for value in state.values())
        held = (*self.lmm.parameters(), *self.mask_tokenizer.parameters(), *states)
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def measure_training_step(settings: StepBenchmark, on_progress: OnProgress = ignore_progress) -> dict[str, Any]:
    """Measure time and memory of whole steps.

    Args:
        settings: what to measure.
        on_progress: called with the steps done and the steps in all.
    Returns:
        `settings`, `parameters`, `tokens`, `tflops` of a step, and for each of `LAYOUTS` `seconds` (median) with and
        without the mask loss, `mask_loss_share`, `tokens_per_second` (without padding), `peak_gib` and
        `model_flops_utilisation`, None if the device's peak is unknown.
    Raises:
        ValueError: the device cannot be used, or its memory is too small.
    """
    step = TrainingStep(settings)
    batches, kinds = {layout: step.batch(layout) for layout in LAYOUTS}, list(product(LAYOUTS, (True, False)))
    total = len(kinds) * (1 + settings.repeats)
    tokens, flops = sum(map(len, step.samples)), step.flops()
    seconds: dict[tuple[str, bool], list[float]] = {kind: [] for kind in kinds}
    peaks: dict[str, int] = {}
    for i in range(total):
        layout, mask_loss = kinds[i % len(kinds)]
        run = partial(step.run, batches[layout], mask_loss)
        if i < len(kinds):
            run()  # warms up and creates the optimizer's states
            if mask_loss:
                peaks[layout] = step.bytes_held() + measure_peak_memory(run, step.device)
        else:
            seconds[layout, mask_loss].append(measure_seconds(run, step.device))
        on_progress(i + 1, total)
    peak = settings.peak_tflops or find_peak_tflops(step.device, settings.dtype)

    def row(layout: str) -> dict[str, float | None]:
        whole, without = (statistics.median(seconds[layout, mask_loss]) for mask_loss in (True, False))
        return {
            "seconds": whole,
            "seconds_without_mask_loss": without,
            "mask_loss_share": 1 - without / whole,
            "tokens_per_second": tokens / whole,
            "peak_gib": peaks[layout] / GIB,
            "model_flops_utilisation": None if peak is None else flops / whole / (peak * 1e12),
        }

    return {
        "settings": {**asdict(settings), "device": str(step.device), "peak_tflops": peak},
        "parameters": {"lmm": step.lmm.num_parameters(), "mask_tokenizer": step.mask_tokenizer.num_parameters()},
        "tokens": tokens,
        "tflops": flops / 1e12,
        **{layout: row(layout) for layout in LAYOUTS},
    }
