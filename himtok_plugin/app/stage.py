"""What the browser draws: an image of the size of a screen, and its masks with all of their prefixes.

Contract: `describe_image` and `describe_layers` return plain JSON. Masks are COCO RLE in the size of the drawn image,
so that the script of the page redraws any prefix without asking anybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from himtok_plugin.masks import to_rle
from himtok_plugin.masks.rle import rle_to_mask
from himtok_plugin.metrics.boxes import boxes_in_text
from himtok_plugin.pages.environment import picture_data_uri

from .answer_text import layer_color
from .session import Conversation, MaskLayer, Rle
from .uploads import UploadedImage, fit_size

_CACHED_MASKS = 2048  # of all tabs; a kilobyte each


def describe_image(image: UploadedImage) -> dict[str, Any]:
    """Describe the image to draw: name, width and height in full and as drawn, and the picture as a `data:` URI."""
    h, w = image.size
    screen = image.screen
    return {
        "name": image.name,
        "full": [w, h],
        "size": [screen.width, screen.height],
        "url": picture_data_uri(screen),
    }


def describe_layers(conversation: Conversation) -> dict[str, Any]:
    """Describe the masks to draw.

    Returns:
        `layers`: id, name, color, score, uncertain, region, turn, tokens, and RLE `counts` of each mask and of its
        `prefixes` (number of tokens → counts); `size`: [h, w] of all of them; `tokens`: the largest number of tokens;
        `turns`: how many there are; `boxes`: [x1, y1, x2, y2] of the boxes that the last answer writes as text, in
        fractions of the image.
    """
    size = fit_size(conversation.image.size)
    layers: list[dict[str, Any]] = []
    for turn_number, turn in enumerate(conversation.turns):
        layers += [_describe(layer, turn_number, size) for layer in (*turn.regions, *turn.masks)]
        if turn.open_prefixes:
            layers.append(_describe_open(turn.open_prefixes, len(conversation.masks) + 1, turn_number, size))
    return {
        "layers": layers,
        "size": list(size),
        "tokens": conversation.num_tokens,
        "turns": len(conversation.turns),
        "boxes": _find_boxes(conversation.turns[-1].answer) if conversation.turns else [],
    }


def scale_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a mask to another size, each pixel as the one at the same place: bool (h, w) → bool `size`."""
    if mask.shape == size:
        return mask
    rows, columns = (
        (np.arange(after) * 2 + 1) * before // (2 * after) for before, after in zip(mask.shape, size, strict=True)
    )
    return mask[rows][:, columns]


def _find_boxes(text: str) -> list[list[float]]:
    """Boxes in thousandths of the image, as most LMMs write them; boxes in another unit would lie beyond the image."""
    boxes = boxes_in_text(text, (1, 1))
    return [list(box) for box in boxes if 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1]


def _describe(layer: MaskLayer, turn: int, size: tuple[int, int]) -> dict[str, Any]:
    return {
        "id": layer.id,
        "name": layer.name,
        "color": list(layer_color(layer)),
        "score": layer.score,
        "uncertain": layer.is_uncertain,
        "region": layer.is_region,
        "turn": turn,
        "tokens": len(layer.codes),
        "counts": _scale(layer.rle, size),
        "prefixes": {str(n): _scale(rle, size) for n, rle in sorted(layer.prefixes.items())},
    }


def _describe_open(prefixes: Mapping[int, Rle], number: int, turn: int, size: tuple[int, int]) -> dict[str, Any]:
    """The mask that is being written, as far as it is known."""
    written = max(prefixes)
    layer = MaskLayer("open", number, prefixes[written], codes=range(written))
    return _describe(layer, turn, size)


def _scale(rle: Rle, size: tuple[int, int]) -> str:
    counts = rle["counts"]
    return _scale_counts(counts if isinstance(counts, str) else tuple(counts), tuple(rle["size"]), size)


@lru_cache(maxsize=_CACHED_MASKS)
def _scale_counts(counts: str | tuple[int, ...], before: tuple[int, int], after: tuple[int, int]) -> str:
    if before == after and isinstance(counts, str):
        return counts
    return to_rle(scale_mask(rle_to_mask(counts, before), after))["counts"]
