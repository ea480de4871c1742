"""Boxes in an answer's text, in pixels of the image, and in a result row beside the ground truth.

Contract: ms-swift's templates write boxes in thousandths of the image or, with `norm_bbox` "none" (Qwen2.5-VL and
others), in pixels of the image that the template has resized. `get_resized_image_size` lets the template
resize the image to find its size.
"""

from __future__ import annotations

from typing import Any

from PIL import Image
from swift.template import TEMPLATE_MAPPING, StdTemplateInputs
from swift.utils import get_logger

from himtok_plugin.evaluation.ground_truth import select_answer_boxes
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER
from himtok_plugin.metrics.boxes import boxes_in_text
from himtok_plugin.swift_integration.samples.sample_images import read_image_size

logger = get_logger()
THOUSANDTHS, RESIZED = "norm1000", "none"  # values of ms-swift's `norm_bbox`


def get_norm_bbox(args: Any) -> str | None:
    """Return how a run's template writes boxes; None if the template is unknown, as that of a server."""
    given = getattr(args, "norm_bbox", None)
    meta = getattr(args, "template_meta", None) or TEMPLATE_MAPPING.get(getattr(args, "template", None))
    return given or (None if meta is None else meta.template_cls.norm_bbox)


def get_resized_image_size(template: Any, image: Any) -> tuple[int, int] | None:
    """Return the size (h, w) to which a template resizes an image; None if the template does not expose it.

    Args:
        template: of ms-swift.
        image: in any of ms-swift's forms.
    """
    inputs = StdTemplateInputs(messages=[{"role": "user", "content": IMAGE_PLACEHOLDER}], images=[image])
    template._preprocess_inputs(inputs)
    template.replace_tag("image", 0, inputs)
    shown = inputs.images[0]
    return (shown.height, shown.width) if isinstance(shown, Image.Image) else None


def parse_answer_boxes(text: str, image: Any, template: Any) -> list[list[float]] | None:
    """Parse the boxes of an answer: x1, y1, x2, y2 in pixels of the image. None if the scale of its numbers is unknown.

    Args:
        text: the answer.
        image: in any of ms-swift's forms.
        template: ms-swift's template that has encoded the question.
    """
    size = read_image_size(image)
    if template.norm_bbox == THOUSANDTHS:
        found = boxes_in_text(text, size)
    else:
        shown = get_resized_image_size(template, image)
        if shown is None:
            return None
        found = boxes_in_text(text, size, "pixel", shown)
    return [list(box) for box in found]


def add_boxes_to_result(row: dict[str, Any], text: str, template: Any) -> None:
    """Write the boxes of an answer and the true ones to a result row, in place. Do nothing if it has no true boxes.

    Args:
        row: a dataset row with its messages; the generated answer may be the last of them.
        text: the generated answer.
        template: see `parse_answer_boxes`.
    """
    images = row.get("images") or []
    if not images or not (row.get("objects") or {}).get("bbox"):
        return
    true = select_answer_boxes(row["objects"], row["messages"], read_image_size(images[0]))
    if true is None:
        return
    found = parse_answer_boxes(text, images[0], template)
    if found is None:
        logger.warning_once(f"boxes: {type(template).__name__} hides the size of its images, so boxes are not scored")
        return
    row.update(boxes=found, target_boxes=true)
