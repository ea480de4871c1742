"""What a run writes: pictures with masks drawn on them, mask images, and rows as `swift infer` writes them.

Contract: names come from the image's, so that a folder of results can be read beside the folder of images. Two images
or questions never share a name, and none takes the name of an image that was asked about.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, text_to_codes
from himtok_plugin.masks import to_rle
from himtok_plugin.masks.drawing import choose_colors, draw_mask_tag, overlay
from himtok_plugin.prediction.question_text import QUESTION, format_question
from himtok_plugin.prediction.segmentation_result import UNCERTAIN_BELOW, SegmentationResult
from himtok_plugin.prediction.segments import find_label

from .answerers import Answer, FileQuestion


class FreeNames:
    """Gives out paths that do not exist and were not given out before.

    Args:
        taken: paths that must not be written.
    """

    def __init__(self, taken: Iterable[Path] = ()):
        self._taken = {path.resolve() for path in taken}

    def choose(self, folder: Path, stem: str, ending: str) -> Path:
        """Return `folder/stem` + ending, with a number after the stem if that is taken."""
        number = 1
        while True:
            path = folder / f"{stem}{'' if number == 1 else f'_{number}'}{ending}"
            if path.resolve() not in self._taken and not path.exists():
                self._taken.add(path.resolve())
                return path
            number += 1


def list_labels(result: SegmentationResult, expression: str) -> list[str]:
    """What each mask is called: by the answer itself, else by the expression."""
    spans = [span for span in text_to_codes(result.text) if span.codes]
    starts = [0, *(span.end for span in spans)]
    found = [find_label(result.text[end : span.start]) for end, span in zip(starts, spans, strict=False)]
    found += [None] * (len(result) - len(found))
    return [label or expression for label in found[: len(result)]]


def describe_score(score: float) -> str:
    """A score in words; empty without one."""
    if math.isnan(score):
        return ""
    return f"{score:.2f}, uncertain" if score < UNCERTAIN_BELOW else f"{score:.2f}"


def draw_result(result: SegmentationResult, labels: list[str]) -> Image.Image:
    """Draw the image of a result with its masks, each with its label and score.

    A label that the built-in font cannot write is replaced by the number of the mask.
    """
    if result.image is None:
        raise ValueError("image is None: expected a result with its image")
    colors = choose_colors(result.image, result.masks)
    picture = overlay(result.image, result.masks, colors=colors or None)
    for i, (mask, label, score, color) in enumerate(zip(result.masks, labels, result.scores, colors, strict=True), 1):
        draw_mask_tag(picture, mask, color, label, i, describe_score(score))
    return picture


def write_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture in the format of the path's suffix; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


def write_masks(result: SegmentationResult, folder: Path, stem: str, names: FreeNames) -> list[Path]:
    """Write a PNG per mask, 255 where the object is, and return the paths."""
    return [
        write_picture(Image.fromarray(mask.astype(np.uint8) * 255), names.choose(folder, f"{stem}_mask_{i}", ".png"))
        for i, mask in enumerate(result.masks)
    ]


def make_row(question: FileQuestion, answer: Answer) -> dict[str, Any]:
    """The row of an answer, as `swift infer --plugin himtok` writes it; image paths are absolute."""
    images = [{"path": os.fspath(question.image.resolve()), "bytes": None}]
    if isinstance(answer, str):
        content = IMAGE_PLACEHOLDER + format_question(QUESTION, question.expression)
        return {"error": answer, "messages": [{"role": "user", "content": content}], "images": images}
    masks = [
        {
            **to_rle(mask),
            "codes": codes,
            "score": None if math.isnan(score) else float(score),
            "complete": bool(complete),
        }
        for mask, codes, score, complete in zip(answer.masks, answer.codes, answer.scores, answer.complete, strict=True)
    ]
    row = {"response": answer.text, "messages": answer.messages, "images": images, "masks": masks}
    return {**row, "unknown_words": answer.unknown_words} if answer.unknown_words else row
