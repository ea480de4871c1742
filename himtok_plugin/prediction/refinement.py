"""A second look at predicted masks: Segment Anything prompted with them, and zooming in on them.

Contract: `SamRefiner` runs transformers' own SAM classes (Kirillov et al., arXiv 2304.02643; SAM 2, arXiv 2408.00714;
the tracker of SAM 3) on the image at its own size, with three prompts per mask: its box, points inside it and its
logits. `choose_zoom_window` and `choose_zoomed_mask` are the geometry of asking an LMM again about a crop; who asks is not known
here. A mask is refined or stays as it was; refining never makes one empty.
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

from himtok_plugin.masks.sources import mask_bbox
from himtok_plugin.metrics.segmentation import mask_iou


@dataclass(frozen=True)
class SamKind:
    """Names of transformers' classes, and the weights that are taken where none are named."""

    model: str
    processor: str
    weights: str


SAM_KINDS = {
    "sam": SamKind("SamModel", "SamProcessor", "facebook/sam-vit-huge"),
    "sam2": SamKind("Sam2Model", "Sam2Processor", "facebook/sam2.1-hiera-large"),
    # The part of SAM 3 that takes points, boxes and masks; its detector takes words.
    "sam3": SamKind("Sam3TrackerModel", "Sam3TrackerProcessor", "facebook/sam3"),
}
NUM_POINTS = 3  # one alone may lie on a part; more say little that box and logits do not
MAX_LOGIT = 10.0  # SAM's own low-resolution masks, which its mask prompts were in training, reach about this
LOW_RESOLUTION = 4  # side of SAM's mask prompts, in image embeddings

ZOOM_MARGIN = 0.5  # of the box's sides, on every side of it: what is around a thing tells what it is
ZOOM_LEAST_SHARE = 0.8  # windows larger than this share of the image show nothing new
ZOOM_LEAST_IOU = 0.3  # the second mask must be of the same thing


class SamRefiner:
    """Masks of one image through a promptable segmentation model.

    Args:
        model: `SamModel`, `Sam2Model` or `Sam3TrackerModel` in evaluation mode, wherever it lies.
        processor: its processor.
    """

    def __init__(self, model: Any, processor: Any):
        self.model = model
        self.processor = processor

    @classmethod
    def from_pretrained(cls, kind: str, weights: str | None = None, device: torch.device | str = "cpu") -> SamRefiner:
        """Load weights.

        Args:
            kind: key of `SAM_KINDS`.
            weights: folder or hub id; by default the largest released ones.
            device: where it runs.
        Raises:
            ValueError: no such kind, or weights that cannot be loaded.
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
            masks: n masks, bool (h, w); empty ones stay empty.
            squares: float32 (s, s) mask probabilities of each, stretched over the image; by default the masks
                themselves.
        Returns:
            n masks, bool (h, w).
        Raises:
            ValueError: a mask of another size than the image.
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
        # The decoder adds one mask prompt to one image: every mask is an image of its own, which is embedded once.
        count = len(chosen)
        one = isinstance(embeddings, Tensor)
        maps = [level.expand(count, *level.shape[1:]) for level in ([embeddings] if one else embeddings)]
        frame = inputs.get("reshaped_input_sizes")
        known = [masks[i].astype(np.float32) if squares is None or squares[i] is None else squares[i] for i in chosen]
        prompts = self._mask_prompts(known, LOW_RESOLUTION * maps[-1].shape[-1], frame)
        output = self.model(
            image_embeddings=maps[0] if one else maps,
            input_points=inputs["input_points"][0][:, None].to(device, dtype),
            input_labels=inputs["input_labels"][0][:, None].to(device),
            input_boxes=inputs["input_boxes"][0][:, None].to(device, dtype),
            input_masks=prompts.to(device, dtype),
            multimask_output=False,  # several answers are for prompts that leave open what is meant
        )
        sizes = [[list(size)] * count, *([] if frame is None else [frame.tolist() * count])]
        found = self.processor.post_process_masks(list(output.pred_masks[:, 0].float().cpu()[:, None]), *sizes)
        for i, mask in zip(chosen, found, strict=True):
            mask = mask.reshape(size).numpy()
            if mask.any():
                refined[i] = mask
        return refined

    def _mask_prompts(self, squares: Sequence[np.ndarray], side: int, frame: Tensor | None) -> Tensor:
        """Logits (n, 1, side, side) of masks; `frame`: (h, w) of the image within SAM's padded one, None for SAM 2."""
        covered = (side, side) if frame is None else self._covered(frame[0].tolist(), side)
        prompts = torch.full((len(squares), 1, side, side), -MAX_LOGIT)
        logits = np.stack([make_prompt_logits(square, covered) for square in squares])
        prompts[:, 0, : covered[0], : covered[1]] = torch.from_numpy(logits)
        return prompts

    def _covered(self, frame: Sequence[int], side: int) -> tuple[int, int]:
        """(h, w) of the part of a mask prompt that the image covers; SAM pads images to a square, SAM 2 stretches."""
        full = self.model.config.vision_config.image_size
        return tuple(max(1, round(side * length / full)) for length in frame)


def sample_inner_points(mask: np.ndarray, count: int = NUM_POINTS) -> np.ndarray:
    """Points well inside a mask, spread over it.

    The first is the pixel furthest from the mask's border, each further one the same in what is left of the mask when
    the discs around earlier ones are taken away.

    Args:
        mask: bool (h, w) with some foreground.
        count: number of points; a mask too small for them has its last point several times.
    Returns:
        float64 (count, 2): x, y in pixels.
    """
    # A frame of background, so that the image's border counts as the mask's.
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
    """Logits of mask probabilities (s, s), stretched to (h, w): float32 in [-10, 10]."""
    h, w = size
    stretched = np.asarray(
        Image.fromarray(np.ascontiguousarray(probabilities, np.float32)).resize((w, h), Image.Resampling.BILINEAR)
    )
    least = 1 / (1 + np.exp(MAX_LOGIT))
    clipped = np.clip(stretched, least, 1 - least).astype(np.float64)
    return np.log(clipped / (1 - clipped)).astype(np.float32)


def choose_zoom_window(mask: np.ndarray, margin: float = ZOOM_MARGIN) -> tuple[int, int, int, int] | None:
    """The part of the image to look at again.

    Args:
        mask: bool (h, w).
        margin: room around the mask's box, in sides of it.
    Returns:
        x1, y1, x2, y2 in pixels, x2 and y2 exclusive; None for an empty mask and for one that fills the image already.
    """
    h, w = mask.shape
    x1, y1, x2, y2 = mask_bbox(mask)
    if x2 == 0:
        return None
    dx, dy = round(margin * (x2 - x1)), round(margin * (y2 - y1))
    window = max(0, x1 - dx), max(0, y1 - dy), min(w, x2 + dx), min(h, y2 + dy)
    share = (window[2] - window[0]) * (window[3] - window[1]) / (h * w)
    return None if share > ZOOM_LEAST_SHARE else window


def choose_zoomed_mask(
    mask: np.ndarray, window: tuple[int, int, int, int], found: Sequence[np.ndarray]
) -> tuple[np.ndarray, int] | None:
    """The mask that a second look at a window gives.

    Args:
        mask: bool (h, w), of the first look.
        window: x1, y1, x2, y2 as `choose_zoom_window` says.
        found: masks of the second look, bool, of the window's size.
    Returns:
        The one of `found` that is most like the first mask, bool (h, w), and its index; None if none is at all.
    """
    x1, y1, x2, y2 = window
    inside = mask[y1:y2, x1:x2]
    ious = [mask_iou(inside, candidate) if candidate.any() else 0.0 for candidate in found]
    if not ious or max(ious) < ZOOM_LEAST_IOU:
        return None
    best = int(np.argmax(ious))
    refined = np.zeros_like(mask)
    refined[y1:y2, x1:x2] = found[best]
    return refined, best
