"""Checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image
from swift.template import StdTemplateInputs
from swift.template.vision_utils import load_file

from himtok_plugin.mask_text import (
    MASK_PLACEHOLDER,
    count_placeholders,
)
from himtok_plugin.masks.sources import load_mask
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime

from .chat_requests import SegmentInferRequest, _reason

_RLE_KEYS = {"size", "counts"}  # no paths, those are the server's files; no polygons, a few bytes of them take long


@dataclass(frozen=True)
class RequestImage:
    """What the masks of an answer belong to: the request's first image, as ms-swift reads it, and its (h, w)."""

    source: Any
    size: tuple[int, int]


def check_request(request: SegmentInferRequest, runtime: MaskRuntime) -> RequestImage | None:
    """Look at a request's images and masks; nothing large is allocated for one beyond the limits.

    Returns:
        The first image, None for a request without images.

    Raises:
        ValueError: says what is wrong with which of them.
    """
    settings = runtime.settings
    try:
        inputs = StdTemplateInputs.from_dict(asdict(request))  # as the template will read it
    except Exception as error:
        raise ValueError(f"messages: {_reason(error)}: expected messages with role and content") from error
    sizes = [_image_size(image, f"images[{i}]", settings.max_image_pixels) for i, image in enumerate(inputs.images)]
    masks = request.masks
    texts = [message["content"] for message in inputs.messages if isinstance(message.get("content"), str)]
    placeholders = sum(count_placeholders(text) for text in texts)
    if len(masks) > settings.max_request_masks:
        raise ValueError(f"masks: got {len(masks)}, expected at most {settings.max_request_masks}")
    if len(masks) != placeholders:
        raise ValueError(
            f"masks: got {len(masks)} with {placeholders} {MASK_PLACEHOLDER} in the messages, expected one for each"
        )
    if masks and not sizes:
        raise ValueError("masks: got a request without an image, expected the image that they belong to")
    for i, mask in enumerate(masks):
        _check_mask(mask, sizes[0], f"masks[{i}]")
    return RequestImage(inputs.images[0], sizes[0]) if sizes else None


def check_previews(previews: list[int] | None, runtime: MaskRuntime) -> list[int]:
    """What a request asks for, else what the server's flag says; ValueError for what is no number of mask tokens."""
    if previews is None:
        return runtime.settings.mask_previews
    limit = runtime.num_mask_tokens
    wrong = next((n for n in previews if not 1 <= n <= limit), None)
    if wrong is not None:
        raise ValueError(f"mask_previews: got {wrong!r}, expected numbers of tokens from 1 to {limit}")
    return previews


def _image_size(image: Any, name: str, max_pixels: int) -> tuple[int, int]:
    """(h, w) read off an image's header; the template decodes the rest."""
    try:
        with Image.open(load_file(image)) as opened:
            h, w = opened.height, opened.width
    except Exception as error:  # base64, PIL and the file system have their own each
        raise ValueError(f"{name}: cannot be read ({_reason(error)}), expected an image") from error
    if h * w > max_pixels:
        raise ValueError(f"{name}: got {h} x {w} = {h * w} pixels, expected at most {max_pixels}")
    return h, w


def _check_mask(mask: Any, size: tuple[int, int], name: str) -> None:
    if not isinstance(mask, dict) or set(mask) != _RLE_KEYS:
        raise ValueError(f"{name}: got {mask!r:.80}, expected a COCO RLE {{'size': [h, w], 'counts': …}}")
    if mask["size"] != list(size):  # before anything of that size is made
        raise ValueError(f"{name}: got size {mask['size']!r:.80}, expected {list(size)}, the first image's [h, w]")
    try:
        load_mask(mask, size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
