"""`--refiner`: what ms-swift's own engine answered, looked at a second time.

Contract: `refine_responses` takes requests and responses of one call of `TransformersEngine` and replaces the masks
that `inference.attach_masks` has put there. With `sam`, `sam2` and `sam3` a model refines them on the request's own
image; with `zoom` the engine is asked the same question about the crop around each mask. Does not know how masks are
decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

from PIL import Image
from swift.template import StdTemplateInputs
from swift.utils import get_logger

from himtok_plugin.mask_text import BOX_PLACEHOLDER, MASK_PLACEHOLDER, MASK_START
from himtok_plugin.prediction.predictor import PredictedMask
from himtok_plugin.prediction.refinement import SAM_KINDS, choose_zoom_window, choose_zoomed_mask
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime
from himtok_plugin.swift_integration.samples.sample_images import load_sample_image

from .response_masks import RESPONSE_ATTRIBUTE, refine_with_sam

logger = get_logger()
GIVEN = (MASK_PLACEHOLDER, MASK_START, BOX_PLACEHOLDER)  # what in a question speaks of places in the whole image


def refine_responses(
    runtime: MaskRuntime, requests: Sequence[Any], responses: Sequence[Any], ask: Callable[[list[Any]], list[Any]]
) -> None:
    """Refine the masks of all responses, in place.

    Args:
        requests: ms-swift's requests, `InferRequest` or rows.
        responses: its responses in the same order; exceptions among them are passed over.
        ask: the engine itself, for further requests.
    """
    pairs = zip(requests, responses, strict=True)
    answered = [(request, response) for request, response in pairs if hasattr(response, "choices")]
    if runtime.settings.refiner in SAM_KINDS:
        for request, response in answered:
            for choice in response.choices:
                masks = getattr(choice.message, RESPONSE_ATTRIBUTE, None)
                if masks:
                    _, images = plain_request(request)
                    refined = refine_with_sam(runtime, load_sample_image(images[0]), masks)
                    setattr(choice.message, RESPONSE_ATTRIBUTE, refined)
    elif runtime.settings.refiner == "zoom":
        _zoom(answered, ask)


def _zoom(answered: list[tuple[Any, Any]], ask: Callable[[list[Any]], list[Any]]) -> None:
    looks = []  # (masks of a choice, which of them, window, crop's request)
    for request, response in answered:
        messages, images = plain_request(request)
        for choice in response.choices:
            masks = getattr(choice.message, RESPONSE_ATTRIBUTE, None)
            if not masks:
                continue
            if not _asks_about_image_only(messages, images):
                logger.warning_once("--refiner zoom: several turns, images, or given masks and boxes are answered once")
                continue
            image = load_sample_image(images[0])
            for i, mask in enumerate(masks):
                window = choose_zoom_window(mask.mask)
                if window is not None:
                    looks.append((masks, i, window, _ask_about_crop(messages, image, window)))
    # As many at once as there were requests: the caller has chosen what fits into memory.
    step = max(len(answered), 1)
    for begin in range(0, len(looks), step):
        batch = looks[begin : begin + step]
        for (masks, i, window, _), response in zip(batch, ask([look[3] for look in batch]), strict=True):
            if hasattr(response, "choices"):
                found: list[PredictedMask] = getattr(response.choices[0].message, RESPONSE_ATTRIBUTE, [])
                zoomed = choose_zoomed_mask(masks[i].mask, window, [mask.mask for mask in found])
                if zoomed is not None:
                    # Codes and text stay those of the answer; the score is that of the mask which is shown.
                    new, second = zoomed[0], found[zoomed[1]]
                    masks[i] = replace(masks[i], mask=new, score=second.score, raw_score=second.raw_score)


def plain_request(request: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages with text as content, and images, of a request in any of ms-swift's forms; it stays as it is."""
    row = request if isinstance(request, dict) else vars(request)
    messages = deepcopy(row["messages"])
    inside = StdTemplateInputs.remove_messages_media(messages)["images"]
    images = inside or row.get("images") or []
    return messages, images if isinstance(images, list | tuple) else [images]


def _asks_about_image_only(messages: list[dict[str, Any]], images: list[Any]) -> bool:
    asked = [message for message in messages if message["role"] != "system"]
    if asked and asked[-1]["role"] == "assistant":  # the true answer of a dataset's row
        asked = asked[:-1]
    return (
        len(images) == 1
        and [message["role"] for message in asked] == ["user"]
        and isinstance(asked[0]["content"], str)
        and not any(given in asked[0]["content"] for given in GIVEN)
    )


def _ask_about_crop(
    messages: list[dict[str, Any]], image: Image.Image, window: tuple[int, int, int, int]
) -> dict[str, Any]:
    return {"messages": [m for m in messages if m["role"] != "assistant"], "images": [image.crop(window)]}
