"""Masks of an engine's answers.

Contract: `attach_masks` decodes the masks of responses of ms-swift's own engine, from the code probabilities that it
has just recorded. `predict_masks_from_text` decodes those of any other engine's answer. Both use `MaskRuntime.predict`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image

from himtok_plugin.lmm.token_logprobs import code_probabilities_from_logprobs
from himtok_plugin.mask_text import text_to_codes
from himtok_plugin.prediction.predictor import Answer, PredictedMask
from himtok_plugin.prediction.refinement import SAM_KINDS
from himtok_plugin.swift_integration.model.mask_runtime import MaskRuntime
from himtok_plugin.swift_integration.samples.sample_images import load_sample_image, read_image_size

RESPONSE_ATTRIBUTE = "himtok_masks"  # of a response's message: list[PredictedMask]


def attach_masks(runtime: MaskRuntime, template_inputs: list, responses: list) -> None:
    """Decode the masks of all responses together and store them at the message of every choice.

    Args:
        runtime: the run's masks.
        template_inputs: ms-swift's inputs of each request, with the attributes of `MaskTemplateMixin`.
        responses: ms-swift's responses in the same order. The choices of a response are consecutive in the batch.
    """
    choices: list[Any] = []
    answers: list[Answer | None] = []  # None for a request without an image
    for inputs, response in zip(template_inputs, responses, strict=True):
        for choice in response.choices:
            sequence = len(choices)
            choices.append(choice)
            if inputs.himtok_size is None:
                answers.append(None)
                continue
            text = choice.message.content
            probabilities = runtime.generation.get_probabilities(sequence, _list_codes(runtime, text))
            answers.append(Answer(text, inputs.himtok_size, probabilities))
    predicted = iter(runtime.predict([answer for answer in answers if answer is not None]))
    for choice, answer in zip(choices, answers, strict=True):
        setattr(choice.message, RESPONSE_ATTRIBUTE, next(predicted) if answer is not None else [])


def predict_masks_from_text(
    runtime: MaskRuntime, text: str, row: dict[str, Any], logprobs: dict[str, Any] | None = None
) -> list[PredictedMask]:
    """Predict the masks of an answer from its text.

    Args:
        runtime: the run's masks.
        text: the answer.
        row: the sample that it answers, with `images`.
        logprobs: log-probabilities that a server has returned. They provide the code probabilities, unless the last
            generation of this process was this answer and has recorded them.
    Returns:
        The masks in order, refined with `--refiner sam|sam2|sam3`; none for a sample without images.
    """
    images = row.get("images") or []
    if not images:
        return []
    codes = _list_codes(runtime, text)
    probabilities = runtime.generation.get_probabilities(0, codes)
    if probabilities is None and codes and logprobs:
        listed, found = code_probabilities_from_logprobs(logprobs.get("content") or (), runtime.codebook_size)
        probabilities = found if listed == codes else None  # otherwise the text was edited
    masks = runtime.predict([Answer(text, read_image_size(images[0]), probabilities)])[0]
    if masks and runtime.settings.refiner in SAM_KINDS:
        masks = refine_with_sam(runtime, load_sample_image(images[0]), masks)
    return masks


def refine_with_sam(runtime: MaskRuntime, image: Image.Image, masks: list[PredictedMask]) -> list[PredictedMask]:
    """Refine masks with the model of `--refiner sam|sam2|sam3`; codes and scores stay unchanged."""
    refined = runtime.refiner()(image, [mask.mask for mask in masks], [mask.square for mask in masks])
    return [replace(mask, mask=new, square=None) for mask, new in zip(masks, refined, strict=True)]


def _list_codes(runtime: MaskRuntime, text: str) -> list[int]:
    """Return the codes of all masks in a text."""
    spans = text_to_codes(text, runtime.codebook_size, runtime.num_mask_tokens)
    return [code for span in spans for code in span.codes]
