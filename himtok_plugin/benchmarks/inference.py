"""How fast masks become codes, codes masks, and questions answers: masks per second and latency per batch.

Contract: `measure_inference` times a mask tokenizer's encode and decode, from tensors to tensors on its device, for
every asked size, batch and device; and, given something that answers questions about images, that as well, from images
in memory to masks at the image's size. Weights are random where no checkpoint is named: they cost the same time. Does
not know LMMs and ms-swift: what answers is handed in.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image

from himtok_plugin.data.generated.scenes import generate_scenes
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER
from himtok_plugin.mask_tokenizer import SIZES, MaskTokenizer, build_mask_tokenizer

from .mask_loss import measure_seconds, random_squares, resolve_device

BATCHES = (1, 8, 32)
SCENE_SEED = 7
Ask = Callable[[list[Image.Image], list[str]], Sequence[Sequence[Any]]]  # images, questions -> masks of each answer
OnTimed = Callable[[int, int], None]


@dataclass(frozen=True)
class InferenceBenchmark:
    """What is measured.

    Args:
        sizes: named sizes of the mask tokenizer.
        batches: masks, or questions, at once.
        devices: names of devices that torch knows.
        repeats: timed runs of each, after one that is not; the median counts.

    Raises:
        ValueError: a field is out of range, or a device cannot be used here.
    """

    sizes: tuple[str, ...] = ("tiny",)
    batches: tuple[int, ...] = BATCHES
    devices: tuple[str, ...] = ("cpu",)
    repeats: int = 5
    seed: int = 0

    def __post_init__(self):
        unknown = sorted(set(self.sizes) - SIZES.keys())
        if unknown:
            raise ValueError(f"sizes: got {unknown[0]!r}, expected some of {', '.join(SIZES)}")
        for name, values in (("batches", self.batches), ("repeats", (self.repeats,))):
            if not values or min(values) < 1:
                raise ValueError(f"{name}: got {list(values)}, expected integers >= 1")
        for name in self.devices:
            resolve_device(name)


def default_devices() -> tuple[str, ...]:
    """The CPU, and the GPU where there is one."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        part: `encode`, `decode` (codes), `decode soft` (code probabilities) or `end to end`.
        size: of the mask tokenizer; for `end to end` the checkpoint.
        device: where it ran.
        batch: masks or questions at once.
        masks: masks that a batch gave.
        seconds: median time of a batch, its latency.
        slowest: the longest of the timed runs, in seconds.
    """

    part: str
    size: str
    device: str
    batch: int
    masks: int
    seconds: float
    slowest: float

    @property
    def masks_per_second(self) -> float:
        return self.masks / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "masks_per_second": self.masks_per_second}


def measure_inference(
    settings: InferenceBenchmark,
    ask: Ask | None = None,
    checkpoint: str = "",
    device: str = "",
    on_progress: OnTimed = lambda done, total: None,
) -> list[Timing]:
    """Measure.

    Args:
        ask: answers a batch of questions about 64 x 64 scenes; None leaves `end to end` out.
        checkpoint, device: what `ask` is, for the table.
        on_progress: called with measurements done and measurements in all.
    """
    total = 3 * len(settings.sizes) * len(settings.devices) * len(settings.batches)
    total += len(settings.batches) if ask is not None else 0
    timings: list[Timing] = []

    def add(timing: Timing) -> None:
        timings.append(timing)
        on_progress(len(timings), total)

    for name in settings.devices:
        for size in settings.sizes:
            torch.manual_seed(settings.seed)
            tokenizer = build_mask_tokenizer(size).to(name).eval()
            for batch in settings.batches:
                for part, step in tokenizer_steps(tokenizer, batch).items():
                    seconds = timed(step, settings.repeats, torch.device(name))
                    add(Timing(part, size, name, batch, batch, statistics.median(seconds), max(seconds)))
            del tokenizer
    if ask is not None:
        for batch in settings.batches:
            scenes = list(generate_scenes(batch, seed=SCENE_SEED))
            images = [scene.image for scene in scenes]
            questions = [scene.messages[0]["content"].removeprefix(IMAGE_PLACEHOLDER) for scene in scenes]
            masks = sum(len(answer) for answer in ask(images, questions))
            seconds = timed(partial(ask, images, questions), settings.repeats, torch.device(device or "cpu"), warm=True)
            add(Timing("end to end", checkpoint, device, batch, masks, statistics.median(seconds), max(seconds)))
    return timings


def tokenizer_steps(tokenizer: MaskTokenizer, batch: int) -> dict[str, Callable[[], object]]:
    """The parts of a mask tokenizer to time, on inputs that are on its device already."""
    config, device = tokenizer.config, tokenizer.device
    squares = random_squares(batch, config.image_size).to(device)
    codes = torch.randint(0, config.codebook_size, (batch, config.num_mask_tokens), device=device)
    shape = (batch, config.num_mask_tokens, config.codebook_size)
    probabilities = torch.randn(shape, device=device).softmax(dim=-1)
    return {
        "encode": lambda: tokenizer.encode(squares),
        "decode": lambda: tokenizer.decode(codes),
        "decode soft": lambda: tokenizer.decode_probabilities(probabilities),
    }


@torch.inference_mode()
def timed(step: Callable[[], object], repeats: int, device: torch.device, warm: bool = False) -> list[float]:
    """Seconds of each of `repeats` runs, after one that warms up unless `warm`; waits for the device."""
    if not warm:
        step()
    return [measure_seconds(step, device) for _ in range(repeats)]
