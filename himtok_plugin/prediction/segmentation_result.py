"""The answer of a segmenting LMM as arrays, boxes, a picture or COCO annotations.

Contract: `SegmentationResult` holds one answer. `from_masks` makes it from predicted masks, `from_row` from a line of a
result file, so answers of a loaded model and of an earlier run have the same form. An answer without a mask has arrays
of length 0, never a black mask. Needs neither torch nor a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from himtok_plugin.masks import load_mask, mask_bbox, to_rle
from himtok_plugin.masks.rle import check_size
from himtok_plugin.metrics.boxes import NORMALIZED_SIDE, boxes_in_text

if TYPE_CHECKING:
    from .predictor import PredictedMask

UNCERTAIN_BELOW = 0.5  # scores: a calibrated one is the expected IoU, and IoU 0.5 is the usual limit of a hit


@dataclass(frozen=True, eq=False)
class SegmentationResult:
    """One answer and its n masks, in order of appearance.

    Attributes:
        text: the answer as generated, mask text included.
        masks: bool (n, h, w), of the image's size.
        scores: float64 (n,) in [0, 1], the confidence in each mask; NaN where the engine recorded no probabilities.
        complete: bool (n,), False for a mask whose text is cut or malformed.
        codes: the codes of each mask.
        image: the image of the question; None if the result was made without it.
        row: the question as a dataset row with the answer as its last message; a further turn continues it.
        box_side: side of the image in the coordinates of boxes that the answer writes as text; None if the template
            writes pixels of the resized image.
        unknown_words: words of the question that no question of the model's training had, in order; empty also for a
            model whose training is not known (`words.known_words`).
    """

    text: str
    masks: np.ndarray
    scores: np.ndarray
    complete: np.ndarray
    codes: list[list[int]] = field(default_factory=list)
    image: Image.Image | None = field(default=None, repr=False)
    row: dict[str, Any] = field(default_factory=dict, repr=False)
    box_side: int | None = NORMALIZED_SIDE
    unknown_words: list[str] = field(default_factory=list)

    @classmethod
    def from_masks(
        cls,
        text: str,
        predicted: Sequence[PredictedMask],
        size: tuple[int, int],
        image: Image.Image | None = None,
        row: Mapping[str, Any] | None = None,
        box_side: int | None = NORMALIZED_SIDE,
        unknown_words: Sequence[str] = (),
    ) -> SegmentationResult:
        """Make a result from predicted masks.

        Args:
            text: the answer.
            predicted: its masks.
            size: (h, w) of the image.
            image, row, box_side, unknown_words: see the class.
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
            unknown_words=list(unknown_words),
        )

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], size: tuple[int, int] | None = None, image: Image.Image | None = None
    ) -> SegmentationResult:
        """Make a result from a line that `swift infer --plugin himtok` wrote.

        Args:
            row: the parsed line, with `response` and `masks`.
            size: (h, w) of the image; needed for an answer without masks unless `image` is given.
            image: the image of the question.
        Raises:
            ValueError: not a result, or its masks cannot be read.
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
            unknown_words=list(row.get("unknown_words") or []),
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
        """float64 (m, 4): x1, y1, x2, y2 in pixels of the boxes that the answer writes as text ("mask to box" tasks).

        The formats are `(x1,y1),(x2,y2)` and `[x1, y1, x2, y2]`, in which ms-swift's templates write a `<bbox>`; see
        `metrics.boxes.boxes_in_text`.

        Raises:
            ValueError: the template writes pixels of the resized image (`norm_bbox` is none, as in Qwen2.5-VL).
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
        """Draw the image with every mask tinted and outlined.

        Args:
            image: by default the image of the question.
            alpha: strength of the tint in [0, 1].
        Raises:
            ValueError: there is no image, or its size differs from the masks'.
        """
        from himtok_plugin.masks.drawing import overlay

        image = self.image if image is None else image
        if image is None:
            raise ValueError("image is None: this result was made without its image, pass it to overlay()")
        return overlay(image, self.masks, alpha)

    def to_coco(self, image_id: int = 0, category_id: int = 1, first_id: int = 1) -> list[dict[str, Any]]:
        """Convert to one COCO annotation per mask, serializable as JSON.

        Args:
            image_id, category_id: the annotations' values.
            first_id: `id` of the first annotation; the next ones follow.
        Returns:
            Dictionaries with id, image_id, category_id, segmentation (compressed RLE), bbox [x, y, width, height], area
            in pixels, iscrowd 0, and score if the mask has one.
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
