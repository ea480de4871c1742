"""What a segmenting LMM answered, in the forms that people use: arrays, boxes, a picture, COCO annotations.

Contract: `SegmentationResult` holds one answer. It is made from predicted masks (`of`) or from a row of a result file
(`from_row`), so results of a running model and of one that ran elsewhere are used alike. An answer without a mask has
no masks: arrays of length 0, never a black mask. This module does not know models, tokenizers, torch and ms-swift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from himtok_plugin.masks.rle import check_size
from himtok_plugin.masks.sources import load_mask, mask_bbox, to_rle
from himtok_plugin.metrics.boxes import NORMALIZED_SIDE, boxes_in_text

if TYPE_CHECKING:
    from .predictor import PredictedMask


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """One answer and its n masks, in order of appearance.

    Attributes:
        text: the answer as generated, mask text included.
        masks: bool (n, h, w), of the image's size.
        scores: float64 (n,) in [0, 1], the confidence in each mask; NaN where the engine recorded no probabilities.
        complete: bool (n,), False for a mask whose text is cut or malformed.
        codes: the codes of each mask.
        image: the image that was asked about, if it is at hand.
        row: the question as a dataset row with the answer as its last message: what a further turn builds on.
        box_side: what the image's sides count in boxes that the answer writes; None where the template decides that by
            the size that it gives the image.
    """

    text: str
    masks: np.ndarray
    scores: np.ndarray
    complete: np.ndarray
    codes: list[list[int]] = field(default_factory=list)
    image: Image.Image | None = field(default=None, repr=False)
    row: dict[str, Any] = field(default_factory=dict, repr=False)
    box_side: int | None = NORMALIZED_SIDE

    @classmethod
    def of(
        cls,
        text: str,
        predicted: Sequence[PredictedMask],
        size: tuple[int, int],
        image: Image.Image | None = None,
        row: Mapping[str, Any] | None = None,
        box_side: int | None = NORMALIZED_SIDE,
    ) -> SegmentationResult:
        """Result of predicted masks.

        Args:
            text: the answer.
            predicted: its masks, bool (h, w) each.
            size: (h, w) of the image.
            image, row, box_side: see the class.
        """
        scores = [np.nan if mask.score is None else mask.score for mask in predicted]
        return cls(
            text=text,
            masks=np.stack([mask.mask for mask in predicted]) if predicted else np.zeros((0, *size), bool),
            scores=np.array(scores, np.float64),
            complete=np.array([mask.complete for mask in predicted], bool),
            codes=[list(mask.codes) for mask in predicted],
            image=image,
            row=dict(row or {}),
            box_side=box_side,
        )

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], size: tuple[int, int] | None = None, image: Image.Image | None = None
    ) -> SegmentationResult:
        """Result of a row that `swift infer --plugin himtok` wrote.

        Args:
            row: with `response` and `masks`.
            size: (h, w) of the image; needed for an answer without masks unless `image` is given.
            image: the image itself.
        Raises:
            ValueError: no such row, or masks that cannot be read.
        """
        entries = row.get("masks")
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError(f"masks is {entries!r:.80}: expected a list of RLE as in a result of `swift infer`")
        if size is None and image is not None:
            size = image.height, image.width
        if size is None and not entries:
            raise ValueError("size is None and the row has no masks: expected the image's size (h, w)")
        size = check_size(entries[0].get("size")) if size is None else check_size(size)
        masks = [load_mask({key: entry.get(key) for key in ("size", "counts")}, size) for entry in entries]
        scores = [np.nan if entry.get("score") is None else entry["score"] for entry in entries]
        return cls(
            text=row.get("response") or "",
            masks=np.stack(masks) if masks else np.zeros((0, *size), bool),
            scores=np.array(scores, np.float64),
            complete=np.array([bool(entry.get("complete", True)) for entry in entries], bool),
            codes=[list(entry.get("codes") or []) for entry in entries],
            image=image,
            row=dict(row),
        )

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        h, w = self.size
        return f"SegmentationResult({len(self)} masks of {h}x{w}, text={self.text!r:.60})"

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of every mask."""
        return self.masks.shape[1], self.masks.shape[2]

    @property
    def boxes(self) -> np.ndarray:
        """int64 (n, 4): x1, y1, x2, y2 of each mask in pixels, x2 and y2 exclusive; zeros for an empty mask."""
        return np.array([mask_bbox(mask) for mask in self.masks], dtype=np.int64).reshape(-1, 4)

    @property
    def text_boxes(self) -> np.ndarray:
        """float64 (m, 4): boxes that the answer writes as numbers, x1, y1, x2, y2 in pixels; what "mask to box" asks.

        Read are `(x1,y1),(x2,y2)` and `[x1, y1, x2, y2]`, which is how ms-swift's templates write a `<bbox>`; see
        `box_metrics.boxes_in_text`.

        Raises:
            ValueError: the template writes pixels of the image as it resized it (`norm_bbox` is none, Qwen2.5-VL).
        """
        if self.box_side is None:
            raise ValueError("box_side is None: expected a template that writes boxes in thousandths of the image")
        side = self.box_side
        return np.array(boxes_in_text(self.text, self.size, "pixel", (side, side)), np.float64).reshape(-1, 4)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation so far, the answer last."""
        return list(self.row.get("messages") or [])

    def overlay(self, image: Image.Image | np.ndarray | None = None, alpha: float = 0.5) -> Image.Image:
        """The image with every mask tinted and outlined.

        Args:
            image: by default the one that was asked about.
            alpha: strength of the tint in [0, 1].
        Raises:
            ValueError: there is no image, or it has another size than the masks.
        """
        from himtok_plugin.masks.drawing import overlay

        image = self.image if image is None else image
        if image is None:
            raise ValueError("image is None: expected the image, this result was made without it")
        return overlay(image, self.masks, alpha)

    def to_coco(self, image_id: int = 0, category_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """One COCO annotation per mask, ready for JSON.

        Args:
            image_id, category_id: written as they are.
            first_id: `id` of the first annotation, further ones count on.
        Returns:
            Dictionaries with id, image_id, category_id, segmentation (compressed RLE), bbox [x, y, width, height], area
            in pixels, iscrowd 0, and score where there is one.
        """
        annotations = []
        for i, (mask, (x1, y1, x2, y2)) in enumerate(zip(self.masks, self.boxes.tolist(), strict=True)):
            annotation = {
                "id": first_id + i,
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": to_rle(mask),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
            if not np.isnan(self.scores[i]):
                annotation["score"] = float(self.scores[i])
            annotations.append(annotation)
        return annotations
