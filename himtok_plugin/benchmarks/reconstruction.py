"""Quality and speed of a mask tokenizer on given masks: `himtok bench masks`.

Contract: `measure_mask_tokenizer` encodes and decodes masks and reports metrics by number of tokens, for all masks and
by COCO's sizes, how many of its codes are used, and masks per second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from himtok_plugin.data.row_files import iter_lines
from himtok_plugin.data.samples import find_file, parse_row, row_masks
from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.mask_tokenizer.objective import measure_codebook_usage
from himtok_plugin.masks import load_mask, to_square
from himtok_plugin.metrics.reconstruction import ReconstructionMetrics

MAX_SMALL_AREA, MAX_MEDIUM_AREA = 32**2, 96**2  # pixels, COCO's definition
SIZES = ("small", "medium", "large")
BATCH = 32


def coco_size(mask: np.ndarray) -> str:
    """Name of the size of a mask, bool (h, w): "small" below 32², "medium" below 96² pixels, else "large"."""
    area = int(mask.sum())
    return "small" if area < MAX_SMALL_AREA else "medium" if area < MAX_MEDIUM_AREA else "large"


def iter_masks(path: Path) -> Iterator[np.ndarray]:
    """Yield the masks of all samples of a JSONL file, bool (h, w) each.

    Raises:
        ValueError: a sample or mask that cannot be read; the message has its line.
    """
    for number, line in enumerate(iter_lines(path), start=1):
        name = f"{path}: sample {number}"
        try:
            for source in row_masks(parse_row(line), "masks") or []:
                yield load_mask(find_file(source))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


@dataclass
class _Totals:
    """What a measurement adds up.

    Attributes:
        by_size: size -> metrics.
        used: how often each code vector was chosen, int64.
        distinct: sum over the masks of their numbers of distinct code vectors.
        seconds: of encoding and of decoding at full length.
    """

    by_size: dict[str, ReconstructionMetrics]
    used: torch.Tensor
    distinct: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "decode": 0.0})


@torch.inference_mode()
def measure_mask_tokenizer(
    mask_tokenizer: MaskTokenizer,
    masks: Iterable[np.ndarray],
    candidates: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Encode and decode masks, and measure what is lost, and how fast it is.

    Args:
        mask_tokenizer: in evaluation mode.
        masks: bool (h, w) each, of any sizes.
        candidates: see `MaskTokenizer.encode`.
        on_progress: called with the number of masks so far.

    Returns:
        `masks`: their number; `scores`: "all" and each size that occurs -> number of tokens -> metrics, see
        `SegmentationMetrics.compute`; `mean_iou`: the same with the mean IoU alone; `used_codes`, `perplexity` of the
        code vectors; `distinct_codes`: mean number of distinct code vectors of a mask; `encoded_per_second`,
        `decoded_per_second`: masks, without reading and resizing them.

    Raises:
        ValueError: there are no masks, or a setting of `encode` is out of range.
    """
    config, quantizer = mask_tokenizer.config, mask_tokenizer.quantize
    totals = _Totals(
        {name: ReconstructionMetrics(config.num_mask_tokens) for name in SIZES},
        torch.zeros(quantizer.num_vectors, dtype=torch.int64),
    )
    remaining, done = iter(masks), 0
    while batch := list(islice(remaining, BATCH)):
        squares = torch.from_numpy(np.stack([to_square(mask, config.image_size) for mask in batch]))
        squares = squares.to(mask_tokenizer.device)
        codes = _timed(totals, "encode", mask_tokenizer.encode, squares, candidates)
        _timed(totals, "decode", mask_tokenizer.decode, codes)
        entries = quantizer.vector_indices(codes).cpu()
        totals.used += torch.bincount(entries.flatten(), minlength=len(totals.used))
        totals.distinct += sum(len(row.unique()) for row in entries)
        for name, metrics in totals.by_size.items():
            chosen = [i for i, mask in enumerate(batch) if coco_size(mask) == name]
            if chosen:
                metrics.update(mask_tokenizer, codes[chosen], [batch[i] for i in chosen])
        done += len(batch)
        if on_progress is not None:
            on_progress(done)
    if not done:
        raise ValueError("masks: got none, expected at least one")
    return _summarize(totals, config.num_mask_tokens, done)


def _timed(totals: _Totals, part: str, run: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    started = time.perf_counter()
    result = run(*arguments)
    result[:1].cpu()  # waits for another device
    totals.seconds[part] += time.perf_counter() - started
    return result


def _summarize(totals: _Totals, tokens: int, done: int) -> dict[str, Any]:
    together = ReconstructionMetrics(tokens)
    for metrics in totals.by_size.values():
        together.merge(metrics)
    groups = {"all": together, **{name: metrics for name, metrics in totals.by_size.items() if len(metrics)}}
    scores = {name: metrics.compute() for name, metrics in groups.items()}
    return {
        "masks": done,
        "scores": scores,
        "mean_iou": {name: {n: score["gIoU"] for n, score in found.items()} for name, found in scores.items()},
        **measure_codebook_usage(totals.used),
        "distinct_codes": totals.distinct / done,
        "encoded_per_second": done / totals.seconds["encode"],
        "decoded_per_second": done / totals.seconds["decode"],
    }
