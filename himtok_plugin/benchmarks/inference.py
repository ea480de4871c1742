"""`himtok bench infer`: masks per second and latency of a mask tokenizer and of a segmenting LMM.

Contract: `measure_inference` times encoding and decoding of a mask tokenizer, from tensors to tensors on its device,
for every size, batch and device. Given a function that answers questions about images, it also times that, from images
in memory to masks of the image's size.
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

from .measuring import OnProgress, ignore_progress, measure_seconds, random_squares, resolve_device

BATCHES = (1, 8, 32)
SCENE_SEED = 7
AnswerQuestions = Callable[[list[Image.Image], list[str]], Sequence[Sequence[Any]]]  # -> masks of each answer


@dataclass(frozen=True)
class InferenceBenchmark:
    """What to measure.

    Args:
        sizes: named sizes of the mask tokenizer.
        batches: numbers of masks, or of questions, at once.
        devices: torch devices by name.
        repeats: number of timed runs of each, after one warm-up; the median is reported.
        seed: of the random weights.

    Raises:
        ValueError: a field is out of range, or a device cannot be used here.
    """

    sizes: tuple[str, ...] = ("tiny",)
    batches: tuple[int, ...] = BATCHES
    devices: tuple[str, ...] = ("cpu",)
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.sizes) - SIZES.keys())
        if unknown:
            raise ValueError(f"sizes: got {unknown[0]!r}, expected some of {', '.join(SIZES)}")
        for name, values in (("batches", self.batches), ("repeats", (self.repeats,))):
            if not values or min(values) < 1:
                raise ValueError(f"{name}: got {list(values)}, expected integers >= 1")
        for name in self.devices:
            resolve_device(name)


def default_devices() -> tuple[str, ...]:
    """The CPU, and the GPU if there is one."""
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        part: `encode`, `decode` (codes), `decode soft` (code probabilities) or `end to end`.
        size: of the mask tokenizer; for `end to end` the checkpoint.
        device: device of the measurement.
        batch: number of masks or questions at once.
        masks: number of masks in the output of a batch.
        seconds: latency: median time of a batch.
        slowest: longest of the timed runs, in seconds.
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
    ask: AnswerQuestions | None = None,
    checkpoint: str = "",
    device: str = "",
    on_progress: OnProgress = ignore_progress,
) -> list[Timing]:
    """Measure every part, size, batch and device.

    Args:
        settings: what to measure.
        ask: answers a batch of questions about 64 x 64 scenes; without it there is no `end to end`.
        checkpoint: name of the model behind `ask`, for the result.
        device: its device.
        on_progress: called with the measurements done and the measurements in all.
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
                    seconds = time_runs(step, settings.repeats, torch.device(name))
                    add(Timing(part, size, name, batch, batch, statistics.median(seconds), max(seconds)))
            del tokenizer
    if ask is not None:
        for batch in settings.batches:
            scenes = list(generate_scenes(batch, seed=SCENE_SEED))
            images = [scene.image for scene in scenes]
            questions = [scene.messages[0]["content"].removeprefix(IMAGE_PLACEHOLDER) for scene in scenes]
            masks = sum(len(answer) for answer in ask(images, questions))
            seconds = time_runs(
                partial(ask, images, questions), settings.repeats, torch.device(device or "cpu"), warm=True
            )
            add(Timing("end to end", checkpoint, device, batch, masks, statistics.median(seconds), max(seconds)))
    return timings


def tokenizer_steps(tokenizer: MaskTokenizer, batch: int) -> dict[str, Callable[[], object]]:
    """The parts of a mask tokenizer to time, as functions of inputs that are already on its device."""
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
def time_runs(step: Callable[[], object], repeats: int, device: torch.device, warm: bool = False) -> list[float]:
    """Run `step` repeatedly and return the seconds of each run; without `warm` there is one warm-up run before."""
    if not warm:
        step()
    return [measure_seconds(step, device) for _ in range(repeats)]
