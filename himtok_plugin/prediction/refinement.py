"""Refine predicted masks: with Segment Anything, prompted by the mask, or by asking the LMM again about a crop.

Contract: `SamRefiner` runs transformers' own SAM classes (Kirillov et al., arXiv 2304.02643; SAM 2, arXiv 2408.00714;
the tracker of SAM 3) on the image with three prompts per mask: its box, points inside it and its logits.
`choose_zoom_window` chooses the crop for a second question, `choose_zoomed_mask` the mask among its answers; the caller
asks. A mask is refined or stays as it was; refining never empties a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from himtok_plugin.masks import mask_bbox
from himtok_plugin.metrics.segmentation import mask_iou


@dataclass(frozen=True)
class SamKind:
    """A model family: the names of its classes in transformers, and its default weights."""

    model: str
    processor: str
    weights: str


SAM_KINDS = {
    "sam": SamKind("SamModel", "SamProcessor", "facebook/sam-vit-huge"),
    "sam2": SamKind("Sam2Model", "Sam2Processor", "facebook/sam2.1-hiera-large"),
    # The tracker is the part of SAM 3 that takes points, boxes and masks; the detector takes text.
    "sam3": SamKind("Sam3TrackerModel", "Sam3TrackerProcessor", "facebook/sam3"),
}
NUM_POINTS = 3  # a single point may lie on a part of the object; more than 3 add little to box and logits
MAX_LOGIT = 10.0  # about the range of SAM's low-resolution masks, the mask prompts of its training
PROMPT_SIDE = 4  # side of a mask prompt, in multiples of the image embedding's side

ZOOM_MARGIN = 0.5  # context around the mask's box on every side, as a share of the box's side
ZOOM_MAX_SHARE = 0.8  # a window larger than this share of the image shows nothing new
ZOOM_MIN_IOU = 0.3  # a second mask that overlaps the first less is of another object


class SamRefiner:
    """Refines the masks of one image with a promptable segmentation model.

    Args:
        model: `SamModel`, `Sam2Model` or `Sam3TrackerModel` in evaluation mode, on any device.
        processor: its processor.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def from_pretrained(cls, kind: str, weights: str | None = None, device: torch.device | str = "cpu") -> SamRefiner:
        """Load model and processor.

        Args:
            kind: key of `SAM_KINDS`.
            weights: folder or hub id; by default the largest released weights.
            device: device of the model.
        Raises:
            ValueError: unknown kind, or the weights cannot be loaded.
        """
        import transformers

        if kind not in SAM_KINDS:
            raise ValueError(f"refiner: got {kind!r}, expected one of {sorted(SAM_KINDS)}")
        classes = SAM_KINDS[kind]
        weights = weights or classes.weights
        try:
            model = getattr(transformers, classes.model).from_pretrained(weights)
            processor = getattr(transformers, classes.processor).from_pretrained(weights)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"refiner_model: got {weights!r}, expected weights of {classes.model}: {reason}"
            ) from error
        return cls(model.to(device).eval(), processor)

    @torch.inference_mode()
    def __call__(
        self, image: Image.Image, masks: Sequence[np.ndarray], squares: Sequence[np.ndarray | None] | None = None
    ) -> list[np.ndarray]:
        """Refine masks.

        Args:
            image: PIL image of h x w pixels.
            masks: n masks, bool (h, w); empty masks stay empty.
            squares: n mask probabilities, float32 (s, s), stretched over the image; where None, the mask itself is
                the prompt.
        Returns:
            n masks, bool (h, w).
        Raises:
            ValueError: a mask and the image differ in size.
        """
        size = (image.height, image.width)
        for i, mask in enumerate(masks):
            if mask.shape != size:
                raise ValueError(f"masks[{i}] has size {mask.shape}: expected {size}, the size of the image")
        refined = list(masks)
        chosen = [i for i, mask in enumerate(masks) if mask.any()]
        if not chosen:
            return refined
        points = [sample_inner_points(masks[i]) for i in chosen]
        inputs = self.processor(
            images=image.convert("RGB"),
            input_points=[[own.tolist() for own in points]],
            input_labels=[[[1] * len(own) for own in points]],
            input_boxes=[[list(map(float, mask_bbox(masks[i]))) for i in chosen]],
            return_tensors="pt",
        )
        device, dtype = self.model.device, self.model.dtype
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(device, dtype))
        # The decoder takes one mask prompt per image, so every mask is a batch entry with the same image embedding.
        count = len(chosen)
        one = isinstance(embeddings, Tensor)
        maps = [level.expand(count, *level.shape[1:]) for level in ([embeddings] if one else embeddings)]
        frame = inputs.get("reshaped_input_sizes")
        given = list(squares) if squares is not None else [None] * len(masks)
        prompted = [masks[i].astype(np.float32) if (square := given[i]) is None else square for i in chosen]
        prompts = self._mask_prompts(prompted, PROMPT_SIDE * maps[-1].shape[-1], frame)
        output = self.model(
            image_embeddings=maps[0] if one else maps,
            input_points=inputs["input_points"][0][:, None].to(device, dtype),
            input_labels=inputs["input_labels"][0][:, None].to(device),
            input_boxes=inputs["input_boxes"][0][:, None].to(device, dtype),
            input_masks=prompts.to(device, dtype),
            multimask_output=False,  # several masks are for ambiguous prompts
        )
        sizes = [[list(size)] * count, *([] if frame is None else [frame.tolist() * count])]
        found = self.processor.post_process_masks(list(output.pred_masks[:, 0].float().cpu()[:, None]), *sizes)
        for i, mask in zip(chosen, found, strict=True):
            mask = mask.reshape(size).numpy()
            if mask.any():
                refined[i] = mask
        return refined

    def _mask_prompts(self, squares: Sequence[np.ndarray], side: int, frame: Tensor | None) -> Tensor:
        """Logits (n, 1, side, side) of masks; `frame` is (h, w) of the image within SAM's padding, None for SAM 2."""
        covered = (side, side) if frame is None else self._covered_size(frame[0].tolist(), side)
        prompts = torch.full((len(squares), 1, side, side), -MAX_LOGIT)
        logits = np.stack([make_prompt_logits(square, covered) for square in squares])
        prompts[:, 0, : covered[0], : covered[1]] = torch.from_numpy(logits)
        return prompts

    def _covered_size(self, frame: Sequence[int], side: int) -> tuple[int, int]:
        """(h, w) of the part of a mask prompt that the image covers: SAM pads images to a square, SAM 2 stretches."""
        full = self.model.config.vision_config.image_size
        h, w = (max(1, round(side * length / full)) for length in frame)
        return h, w


def sample_inner_points(mask: np.ndarray, count: int = NUM_POINTS) -> np.ndarray:
    """Choose points well inside a mask, spread over it.

    The first point is the pixel furthest from the mask's border. Then the largest disc around it that fits into the
    mask is removed, and the next point is chosen in what remains.

    Args:
        mask: bool (h, w) with some foreground.
        count: number of points; a mask too small for them repeats its last point.
    Returns:
        float64 (count, 2): x, y in pixels.
    """
    # Padding with background makes the image's border a border of the mask.
    left = np.pad(mask, 1)
    points: list[tuple[int, int]] = []
    rows, columns = np.ogrid[: left.shape[0], : left.shape[1]]
    for _ in range(count):
        distances = ndimage.distance_transform_edt(left)
        radius = distances.max()
        if radius == 0:
            points.append(points[-1])
            continue
        y, x = np.unravel_index(distances.argmax(), left.shape)
        points.append((x - 1, y - 1))
        left = left & ((rows - y) ** 2 + (columns - x) ** 2 > radius**2)
    return np.array(points, np.float64)


def make_prompt_logits(probabilities: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Mask probabilities (s, s) as logits, stretched to (h, w): float32 in [-10, 10]."""
    h, w = size
    stretched = np.asarray(
        Image.fromarray(np.ascontiguousarray(probabilities, np.float32)).resize((w, h), Image.Resampling.BILINEAR)
    )
    least = 1 / (1 + np.exp(MAX_LOGIT))
    clipped = np.clip(stretched, least, 1 - least).astype(np.float64)
    return np.log(clipped / (1 - clipped)).astype(np.float32)


def choose_zoom_window(mask: np.ndarray, margin: float = ZOOM_MARGIN) -> tuple[int, int, int, int] | None:
    """Choose the crop of the image for a second question about a mask.

    Args:
        mask: bool (h, w).
        margin: context around the mask's box on every side, as a share of the box's side.
    Returns:
        x1, y1, x2, y2 in pixels, x2 and y2 exclusive; None if the mask is empty or the crop would be nearly the image.
    """
    h, w = mask.shape
    x1, y1, x2, y2 = mask_bbox(mask)
    if x2 == 0:
        return None
    dx, dy = round(margin * (x2 - x1)), round(margin * (y2 - y1))
    window = max(0, x1 - dx), max(0, y1 - dy), min(w, x2 + dx), min(h, y2 + dy)
    share = (window[2] - window[0]) * (window[3] - window[1]) / (h * w)
    return None if share > ZOOM_MAX_SHARE else window


def choose_zoomed_mask(
    mask: np.ndarray, window: tuple[int, int, int, int], found: Sequence[np.ndarray]
) -> tuple[np.ndarray, int] | None:
    """Choose the mask, among those predicted for a crop, that shows the same object as the first mask.

    Args:
        mask: bool (h, w), predicted for the whole image.
        window: the crop, x1, y1, x2, y2 as returned by `choose_zoom_window`.
        found: masks predicted for the crop, bool, of its size.
    Returns:
        The mask with the highest IoU with the first one, as bool (h, w), and its index in `found`; None if no IoU
        reaches 0.3.
    """
    x1, y1, x2, y2 = window
    inside = mask[y1:y2, x1:x2]
    ious = [mask_iou(inside, candidate) if candidate.any() else 0.0 for candidate in found]
    if not ious or max(ious) < ZOOM_MIN_IOU:
        return None
    best = int(np.argmax(ious))
    refined = np.zeros_like(mask)
    refined[y1:y2, x1:x2] = found[best]
    return refined, best
