"""Boxes that answers spell, by the template's way of writing them, in the image's own pixels.

Contract: ms-swift's templates write a box in thousandths of the image, or (`norm_bbox` none: Qwen2.5-VL and some more)
in pixels of the image as the template itself resizes it, which is found out by letting it. `add_boxes_to_result` puts
boxes into a result row whose truth has some. Does not know metrics.
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
    """How a run's template writes boxes; None where its template is not known, as of a server's model."""
    given = getattr(args, "norm_bbox", None)
    meta = getattr(args, "template_meta", None) or TEMPLATE_MAPPING.get(getattr(args, "template", None))
    return given or (None if meta is None else meta.template_cls.norm_bbox)


def get_resized_image_size(template: Any, image: Any) -> tuple[int, int] | None:
    """(h, w) that a template gives an image before the model sees it; None where it keeps that to itself.

    Args:
        template: of ms-swift.
        image: as rows hold it.
    """
    inputs = StdTemplateInputs(messages=[{"role": "user", "content": IMAGE_PLACEHOLDER}], images=[image])
    template._preprocess_inputs(inputs)
    template.replace_tag("image", 0, inputs)
    shown = inputs.images[0]
    return (shown.height, shown.width) if isinstance(shown, Image.Image) else None


def parse_answer_boxes(text: str, image: Any, template: Any) -> list[list[float]] | None:
    """Boxes x1, y1, x2, y2 of an answer, in pixels of the image; None where its numbers mean no one knows what.

    Args:
        text: the answer.
        image: as rows hold it.
        template: of ms-swift, that wrote the question.
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
    """Put the boxes that an answer spells into a result row, and the true ones beside them, where it has true ones.

    Args:
        row: of the dataset, with its messages; perhaps with the answer just generated behind them.
        text: that answer.
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
        logger.warning_once(f"boxes: {type(template).__name__} does not tell what their numbers mean: none is scored")
        return
    row.update(boxes=found, target_boxes=true)
