"""Annotated images in memory: what every format is built from.

Contract: masks belong to the upright image (see `files.images`). The builders of all formats leave out objects without
foreground, of which no format has a notion; `ExportImage.drawn` lists the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from himtok_plugin.masks import mask_bbox

MASKS, POLYGONS = "masks", "polygons"  # how a format that knows both stores an object
DEFAULT_LABEL = "object"  # of a mask that nothing names
SCORE_DIGITS = 6


@dataclass(frozen=True, eq=False)
class ExportObject:
    """One object of an image.

    Attributes:
        mask: bool (h, w), of the image's size.
        label: its class; not empty.
        score: confidence in [0, 1]; None if unknown.
        expression: the text that referred to it; None without one.
    """

    mask: np.ndarray
    label: str = DEFAULT_LABEL
    score: float | None = None
    expression: str | None = None


@dataclass(frozen=True, eq=False)
class ExportImage:
    """An image and its objects.

    Attributes:
        name: path of the image's file as the annotations name it, with slashes, relative to the folder of images.
        size: (h, w) of the upright image.
        objects: in order of appearance.

    Raises:
        ValueError: a mask that is no bool array of the image's size, or an empty label.
    """

    name: str
    size: tuple[int, int]
    objects: Sequence[ExportObject] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        for i, each in enumerate(self.objects):
            if each.mask.dtype != bool or each.mask.shape != tuple(self.size):
                raise ValueError(
                    f"objects[{i}].mask: got {each.mask.dtype} {each.mask.shape}, expected bool {tuple(self.size)}, "
                    f"the size of the image {self.name!r}"
                )
            if not each.label.strip():
                raise ValueError(f"objects[{i}].label: got {each.label!r}, expected the name of a class")

    @property
    def drawn(self) -> list[ExportObject]:
        """The objects with foreground."""
        return [each for each in self.objects if each.mask.any()]


def list_labels(images: Iterable[ExportImage]) -> list[str]:
    """The labels of all objects, each once, in order of appearance."""
    return list(dict.fromkeys(each.label for image in images for each in image.drawn))


def round_score(score: float) -> float:
    """A score as files have it; further digits depend on what else was in the batch of a server."""
    return round(float(score), SCORE_DIGITS)


def crop_mask(mask: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """The part of a mask within its box, and the box: x1, y1, x2, y2 in pixels, x2 and y2 exclusive."""
    x1, y1, x2, y2 = mask_bbox(mask)
    return mask[y1:y2, x1:x2], (x1, y1, x2, y2)
