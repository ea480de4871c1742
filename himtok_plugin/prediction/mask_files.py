"""Mask files to codes and mask text to PNG files, many at a time: what `himtok encode` and `himtok decode` do.

Contract: `encode_files` keeps the order of its files; `decode_to_files` writes one PNG (0 and 255) per mask that has
codes. Does not know the command line, nor how an answer was generated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from himtok_plugin.mask_text import MaskSpan, codes_to_text, text_to_codes
from himtok_plugin.mask_tokenizer.modeling import MaskTokenizer
from himtok_plugin.masks.sources import load_mask, to_square

from .predictor import Answer, MaskPredictor

ENCODE_BATCH = 16  # masks encoded at once; the de-tokenizer's convolutions, not this, are what needs memory


@dataclass(frozen=True)
class EncodedFile:
    """A mask file, its codes (k of them) and their text."""

    path: Path
    codes: list[int]
    text: str


@dataclass(frozen=True)
class DecodedSpan:
    """A mask found in a text and the PNG written for it; `path` is None where the span has no code."""

    span: MaskSpan
    path: Path | None


def encode_files(paths: Sequence[Path], mask_tokenizer: MaskTokenizer, candidates: int = 1) -> Iterator[EncodedFile]:
    """Encode mask images, a batch at a time; `candidates` as of `MaskTokenizer.encode`.

    Raises:
        ValueError: a file that is no mask, named; `candidates` out of range.
    """
    config = mask_tokenizer.config
    for begin in range(0, len(paths), ENCODE_BATCH):
        batch = paths[begin : begin + ENCODE_BATCH]
        squares = np.stack([to_square(load_mask(path), config.image_size) for path in batch])
        codes = mask_tokenizer.encode(torch.from_numpy(squares).to(mask_tokenizer.device), candidates).tolist()
        for path, own in zip(batch, codes, strict=True):
            yield EncodedFile(path, own, codes_to_text(own, config.codebook_size))


def decode_to_files(
    text: str, size: tuple[int, int], mask_tokenizer: MaskTokenizer, folder: Path, threshold: float = 0.5
) -> list[DecodedSpan]:
    """Write every mask of a text as `folder/mask_<i>.png`, i its place among all masks of the text.

    Args:
        text: any text; a malformed mask is decoded from the codes that it has.
        size: (h, w) of the pictures.
        threshold: mask probability from which a pixel is foreground.

    Returns:
        One entry per mask in the text, in order; empty, and no folder made, if there is none.
    """
    config = mask_tokenizer.config
    spans = text_to_codes(text, config.codebook_size, config.num_mask_tokens)
    predicted = MaskPredictor(mask_tokenizer, "hard", threshold)([Answer(text, size)])[0]
    masks = {mask.start: mask.mask for mask in predicted}
    decoded = []
    for i, span in enumerate(spans):
        path = None
        if span.start in masks:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"mask_{i}.png"
            Image.fromarray(masks[span.start].astype(np.uint8) * 255).save(path)
        decoded.append(DecodedSpan(span, path))
    return decoded
