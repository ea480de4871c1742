"""Mask files to codes, and mask text to PNG files: `himtok encode` and `himtok decode` without their command line.

Contract: `encode_files` keeps the order of its files. `decode_to_files` writes one PNG (0 and 255) per mask that has
at least one code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from himtok_plugin.files.images import to_upright_rgb
from himtok_plugin.mask_text import MaskSpan, codes_to_text, text_to_codes
from himtok_plugin.mask_tokenizer.code_search import choose_encoding_batch
from himtok_plugin.mask_tokenizer.modeling import MaskTokenizer
from himtok_plugin.masks import load_mask, to_square
from himtok_plugin.masks.drawing import overlay

from .predictor import Answer, MaskPredictor

ENCODE_BATCH = 16  # masks encoded at once; memory is bounded by the de-tokenizer's convolutions, not by this


@dataclass(frozen=True)
class EncodedFile:
    """A mask file, its k codes and their mask text."""

    path: Path
    codes: list[int]
    text: str


@dataclass(frozen=True)
class DecodedSpan:
    """A mask in a text, its pixels (bool (h, w)) and the PNG written for it; both are None if the span has no code."""

    span: MaskSpan
    path: Path | None
    mask: np.ndarray | None = None


def encode_files(paths: Sequence[Path], mask_tokenizer: MaskTokenizer, candidates: int = 1) -> Iterator[EncodedFile]:
    """Encode mask images in batches.

    Args:
        paths: image files.
        mask_tokenizer: encodes on its device.
        candidates: see `MaskTokenizer.encode`.
    Raises:
        ValueError: a file is not a mask, or `candidates` is out of range.
    """
    config = mask_tokenizer.config
    size = choose_encoding_batch(ENCODE_BATCH, candidates)
    for begin in range(0, len(paths), size):
        batch = paths[begin : begin + size]
        squares = np.stack([to_square(load_mask(path), config.image_size) for path in batch])
        codes = mask_tokenizer.encode(torch.from_numpy(squares).to(mask_tokenizer.device), candidates).tolist()
        for path, mask_codes in zip(batch, codes, strict=True):
            yield EncodedFile(path, mask_codes, codes_to_text(mask_codes, config.codebook_size))


def decode_to_files(
    text: str,
    size: tuple[int, int] | Sequence[tuple[int, int]],
    mask_tokenizer: MaskTokenizer,
    folder: Path,
    threshold: float = 0.5,
    first: int = 0,
) -> list[DecodedSpan]:
    """Write every mask of a text as `folder/mask_<i>.png`, where i counts all masks of the text from `first`.

    Args:
        text: any text; a malformed mask is decoded from the codes that it has.
        size: (h, w) of all PNG files, or a list with one for each mask in the text.
        mask_tokenizer: decodes on its device.
        folder: created if there is a mask to write.
        threshold: mask probability from which a pixel is foreground.
        first: number of the first file.
    Returns:
        One entry per mask in the text, in order.
    Raises:
        ValueError: a size is not two positive integers, or their number is not that of the masks.
    """
    config = mask_tokenizer.config
    spans = text_to_codes(text, config.codebook_size, config.num_mask_tokens)
    sizes = size if isinstance(size, list) else [size] * len(spans)
    if len(sizes) != len(spans):
        raise ValueError(f"size: got {len(sizes)}, expected one, or one for each of the {len(spans)} masks")
    # Each mask is an answer of its own, because an answer has one size.
    answers = [Answer(text[span.start : span.end], own) for span, own in zip(spans, sizes, strict=True)]
    predicted = MaskPredictor(mask_tokenizer, "hard", threshold)(answers)
    decoded = []
    for i, (span, masks) in enumerate(zip(spans, predicted, strict=True), first):
        path = mask = None
        if masks:
            mask = masks[0].mask
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"mask_{i}.png"
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
        decoded.append(DecodedSpan(span, path, mask))
    return decoded


def write_overlay(image: Path, masks: Sequence[np.ndarray], path: Path) -> Path:
    """Write an image with masks drawn on it, each in its own colour, and return the path.

    Args:
        image: the image's file; it is turned upright as viewers show it.
        masks: bool (h, w) of the upright image's size.
        path: the PNG file.
    Raises:
        ValueError: a mask has another size than the image.
    """
    with Image.open(image) as opened:
        overlay(to_upright_rgb(opened, str(image)), masks).save(path)
    return path
