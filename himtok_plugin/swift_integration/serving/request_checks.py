"""Checks of a chat request to `swift deploy`: its images, its masks, its previews and their limits."""

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
from himtok_plugin.masks import load_mask
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime

from .chat_requests import SegmentInferRequest, shorten_reason

_RLE_KEYS = {"size", "counts"}  # neither paths, which are the server's files, nor polygons, which can take long to draw


@dataclass(frozen=True)
class RequestImage:
    """A request's first image in ms-swift's form, and its size (h, w). The masks of the answer belong to it."""

    source: Any
    size: tuple[int, int]


def check_request(request: SegmentInferRequest, runtime: MaskRuntime) -> RequestImage | None:
    """Check a request's images and masks. Nothing large is allocated for a request beyond the limits.

    Returns:
        The first image; None for a request without images.

    Raises:
        ValueError: an image or a mask is bad or exceeds a limit of the server.
    """
    settings = runtime.settings
    try:
        inputs = StdTemplateInputs.from_dict(asdict(request))  # as the template reads it later
    except Exception as error:
        raise ValueError(f"messages: {shorten_reason(error)}: expected messages with role and content") from error
    sizes = [
        _check_image_size(image, f"images[{i}]", settings.max_image_pixels) for i, image in enumerate(inputs.images)
    ]
    masks = request.masks
    texts = [message["content"] for message in inputs.messages if isinstance(message.get("content"), str)]
    placeholders = sum(count_placeholders(text) for text in texts)
    if len(masks) > settings.max_request_masks:
        raise ValueError(f"masks: got {len(masks)}, expected at most {settings.max_request_masks}")
    if len(masks) != placeholders:
        raise ValueError(
            f"masks: got {len(masks)}, expected {placeholders}, one for each {MASK_PLACEHOLDER} in the messages"
        )
    if masks and not sizes:
        raise ValueError("masks: got no image, expected the image that the masks belong to")
    for i, mask in enumerate(masks):
        _check_mask(mask, sizes[0], f"masks[{i}]")
    return RequestImage(inputs.images[0], sizes[0]) if sizes else None


def resolve_previews(previews: list[int] | None, runtime: MaskRuntime) -> list[int]:
    """Return a request's numbers of mask tokens after which to preview a mask; None takes those of the server.

    Raises:
        ValueError: a number exceeds the mask tokens of a mask, or is below 1.
    """
    if previews is None:
        return runtime.settings.mask_previews
    limit = runtime.num_mask_tokens
    wrong = next((n for n in previews if not 1 <= n <= limit), None)
    if wrong is not None:
        raise ValueError(f"mask_previews: got {wrong!r}, expected numbers of tokens from 1 to {limit}")
    return previews


def _check_image_size(image: Any, name: str, max_pixels: int) -> tuple[int, int]:
    """Return an image's size (h, w) from its header, without decoding it."""
    try:
        with Image.open(load_file(image)) as opened:
            h, w = opened.height, opened.width
    except Exception as error:  # base64, PIL, the file system and downloads raise different types
        raise ValueError(f"{name}: cannot be read ({shorten_reason(error)}), expected an image") from error
    if h * w > max_pixels:
        raise ValueError(f"{name}: got {h} x {w} = {h * w} pixels, expected at most {max_pixels}")
    return h, w


def _check_mask(mask: Any, size: tuple[int, int], name: str) -> None:
    if not isinstance(mask, dict) or set(mask) != _RLE_KEYS:
        raise ValueError(f"{name}: got {mask!r:.80}, expected a COCO RLE {{'size': [h, w], 'counts': …}}")
    if mask["size"] != list(size):  # before a mask of that size is allocated
        raise ValueError(f"{name}: got size {mask['size']!r:.80}, expected {list(size)}, the first image's [h, w]")
    try:
        load_mask(mask, size)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
