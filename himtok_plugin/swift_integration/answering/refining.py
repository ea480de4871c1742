"""`--refiner`: refinement of the masks in an engine's responses.

Contract: `refine_responses` takes the requests and responses of one call of ms-swift's own engine and replaces the
masks that `attach_masks` has stored. With `sam`, `sam2` and `sam3` a model refines them on the request's image. With
`zoom` the engine answers the same question about a crop around each mask.
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
LOCATIONS = (MASK_PLACEHOLDER, MASK_START, BOX_PLACEHOLDER)  # in a question they refer to the complete image


def refine_responses(
    runtime: MaskRuntime, requests: Sequence[Any], responses: Sequence[Any], ask: Callable[[list[Any]], list[Any]]
) -> None:
    """Refine the masks of all responses, in place.

    Args:
        runtime: the run's masks.
        requests: ms-swift's requests, `InferRequest` or dictionaries.
        responses: its responses in the same order; exceptions among them are ignored.
        ask: the engine's inference, for further requests.
    """
    pairs = zip(requests, responses, strict=True)
    answered = [(request, response) for request, response in pairs if hasattr(response, "choices")]
    if runtime.settings.refiner in SAM_KINDS:
        for request, response in answered:
            for choice in response.choices:
                masks = getattr(choice.message, RESPONSE_ATTRIBUTE, None)
                if masks:
                    _, images = normalize_request(request)
                    refined = refine_with_sam(runtime, load_sample_image(images[0]), masks)
                    setattr(choice.message, RESPONSE_ATTRIBUTE, refined)
    elif runtime.settings.refiner == "zoom":
        _refine_by_zoom(answered, ask)


def _refine_by_zoom(answered: list[tuple[Any, Any]], ask: Callable[[list[Any]], list[Any]]) -> None:
    """Ask about a crop around each mask, and replace the mask by the one in the crop."""
    crops = []  # (masks of a choice, index of the mask, window, request about the crop)
    for request, response in answered:
        messages, images = normalize_request(request)
        for choice in response.choices:
            masks = getattr(choice.message, RESPONSE_ATTRIBUTE, None)
            if not masks:
                continue
            if not _is_single_question(messages, images):
                logger.warning_once(
                    "--refiner zoom: answers to several turns, several images, masks or boxes stay unrefined"
                )
                continue
            image = load_sample_image(images[0])
            for i, mask in enumerate(masks):
                window = choose_zoom_window(mask.mask)
                if window is not None:
                    crops.append((masks, i, window, _make_crop_request(messages, image, window)))
    # Batches as large as the caller's, which fits into memory.
    step = max(len(answered), 1)
    for begin in range(0, len(crops), step):
        batch = crops[begin : begin + step]
        for (masks, i, window, _), response in zip(batch, ask([crop[3] for crop in batch]), strict=True):
            if hasattr(response, "choices"):
                found: list[PredictedMask] = getattr(response.choices[0].message, RESPONSE_ATTRIBUTE, [])
                zoomed = choose_zoomed_mask(masks[i].mask, window, [mask.mask for mask in found])
                if zoomed is not None:
                    # Codes and text stay those of the first answer; the score is that of the new mask.
                    new, second = zoomed[0], found[zoomed[1]]
                    masks[i] = replace(masks[i], mask=new, score=second.score, raw_score=second.raw_score)


def normalize_request(request: Any) -> tuple[list[dict[str, Any]], list[Any]]:
    """Return messages with texts as content, and images, of a request in any of ms-swift's forms."""
    row = request if isinstance(request, dict) else vars(request)
    messages = deepcopy(row["messages"])
    inside = StdTemplateInputs.remove_messages_media(messages)["images"]
    images = inside or row.get("images") or []
    return messages, list(images) if isinstance(images, list | tuple) else [images]


def _is_single_question(messages: list[dict[str, Any]], images: list[Any]) -> bool:
    """Whether a request is one question about one image, without masks and boxes."""
    turns = [message for message in messages if message["role"] != "system"]
    if turns and turns[-1]["role"] == "assistant":  # the dataset's own answer
        turns = turns[:-1]
    return (
        len(images) == 1
        and [message["role"] for message in turns] == ["user"]
        and isinstance(turns[0]["content"], str)
        and not any(location in turns[0]["content"] for location in LOCATIONS)
    )


def _make_crop_request(
    messages: list[dict[str, Any]], image: Image.Image, window: tuple[int, int, int, int]
) -> dict[str, Any]:
    return {"messages": [m for m in messages if m["role"] != "assistant"], "images": [image.crop(window)]}
