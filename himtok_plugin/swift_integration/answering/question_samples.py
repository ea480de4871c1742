"""The sample of one question to a `Segmenter`: image, question, masks, boxes and earlier turns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.mask_text import BOX_PLACEHOLDER, IMAGE_PLACEHOLDER, MASK_PLACEHOLDER, count_placeholders
from himtok_plugin.masks import MaskSource
from himtok_plugin.prediction.question_text import format_question
from himtok_plugin.prediction.segmentation_result import SegmentationResult
from himtok_plugin.swift_integration.samples.sample_images import load_sample_image

ImageSource = str | os.PathLike | Image.Image | np.ndarray


def build_question_sample(
    template: str,
    image: ImageSource,
    text: str,
    masks: Sequence[MaskSource] | None = None,
    boxes: Sequence[Sequence[float]] | None = None,
    history: SegmentationResult | Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Build the dataset row of one question.

    Args:
        template: the question for a bare expression, with one `{}`.
        image, text, masks, boxes, history: arguments of `Segmenter.__call__`.
    Raises:
        ValueError: masks or boxes do not fit their placeholders, or `history` does not end with an answer.
    """
    earlier: dict[str, Any] = {}
    if isinstance(history, SegmentationResult):
        earlier = history.row
    elif history is not None:
        earlier = {"messages": [dict(message) for message in history]}
    messages = list(earlier.get("messages") or [])
    if messages and messages[-1]["role"] != "assistant":
        raise ValueError(f"history ends with a message of {messages[-1]['role']!r}: expected the assistant's answer")
    all_masks = [*(earlier.get("masks") or []), *(masks or [])]
    all_boxes = [*((earlier.get("objects") or {}).get("bbox") or []), *(list(map(float, box)) for box in boxes or [])]
    question = format_question(template, text)
    texts = [m["content"] for m in messages if isinstance(m["content"], str)]
    if not any(IMAGE_PLACEHOLDER in text for text in (*texts, question)):
        if messages:
            first = next(i for i, message in enumerate(messages) if message["role"] == "user")
            messages[first] = {**messages[first], "content": IMAGE_PLACEHOLDER + messages[first]["content"]}
        else:
            question = IMAGE_PLACEHOLDER + question
    messages.append({"role": "user", "content": question})
    texts = [m["content"] for m in messages if isinstance(m["content"], str)]
    for name, given, placeholders, placeholder in (
        ("masks", all_masks, sum(map(count_placeholders, texts)), MASK_PLACEHOLDER),
        ("boxes", all_boxes, sum(text.count(BOX_PLACEHOLDER) for text in texts), BOX_PLACEHOLDER),
    ):
        if len(given) != placeholders:
            raise ValueError(f"{name} has {len(given)} entries: expected one for each of {placeholders} {placeholder}")
    row: dict[str, Any] = {"messages": messages, "images": [image], "masks": all_masks}
    return {**row, "objects": {"bbox": all_boxes, "ref": []}} if all_boxes else row


def load_image_source(image: Any) -> Image.Image:
    """Load an image from any source, in RGB and upright: a PIL image that keeps its EXIF orientation is turned, too.

    Raises:
        ValueError: the image cannot be read, or has more than 8 bits per channel.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(f"image is {image.dtype} {image.shape}: expected uint8 (h, w) or (h, w, 3)")
        return Image.fromarray(image).convert("RGB")
    try:
        return load_sample_image(os.fspath(image) if isinstance(image, os.PathLike) else image)
    except Exception as error:  # PIL and ms-swift's downloads raise many types
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"image {str(image)!r:.200} cannot be read ({reason}): expected an image") from error
