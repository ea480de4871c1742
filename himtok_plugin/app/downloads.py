"""Files to take from the page: the overlay, mask images, COCO and labelme annotations, all at the image's full size.

Contract: every file holds the masks that are switched on. The overlay shows them as the page does, after the chosen
number of tokens; the other files hold the complete masks. A conversation without such masks is a `ValueError` that says
so, except for the overlay, which is then the image.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin.export.annotations import DEFAULT_LABEL, ExportImage, ExportObject
from himtok_plugin.export.coco import build_coco
from himtok_plugin.export.label_me import build_label_me
from himtok_plugin.masks.drawing import draw_mask_tag, overlay
from himtok_plugin.masks.rle import rle_to_mask

from .answer_text import layer_color
from .session import Conversation, MaskLayer
from .stage import scale_mask

_FORBIDDEN = re.compile(r'[\x00-\x1f<>:"/\\|?*]+')  # in file names, on some system
_LONGEST_NAME = 60  # characters


@dataclass(frozen=True)
class View:
    """What the browser shows.

    Attributes:
        hidden: ids of the masks that are switched off.
        tokens: number of tokens after which masks are drawn; None for all.
    """

    hidden: Collection[str] = ()
    tokens: int | None = None

    @classmethod
    def from_json(cls, text: str | None) -> View:
        """Read {"hidden": [id, …], "tokens": n} as the browser sends it; anything else shows all."""
        try:
            values = json.loads(text or "{}")
            hidden, tokens = values.get("hidden") or [], values.get("tokens")
            return cls(frozenset(map(str, hidden)), tokens if isinstance(tokens, int) and tokens > 0 else None)
        except (ValueError, AttributeError, TypeError):
            return cls()

    def choose(self, layers: Sequence[MaskLayer]) -> list[MaskLayer]:
        """Return the layers that are switched on."""
        return [layer for layer in layers if layer.id not in self.hidden]


def draw_overlay(conversation: Conversation, view: View) -> Image.Image:
    """Draw the image with its masks, regions included, each with its name and score: RGB of the image's size."""
    size = conversation.image.size
    layers = view.choose(conversation.layers)
    masks = [_prefix_mask(layer, view.tokens, size) for layer in layers]
    colors = [layer_color(layer) for layer in layers]
    picture = overlay(conversation.image.open_full(), masks, colors=colors or None)
    for layer, mask, color in zip(layers, masks, colors, strict=True):
        score = "" if layer.score is None else f"{layer.score:.2f}"
        draw_mask_tag(picture, mask, color, layer.name, layer.number, score)
    return picture


def write_overlay(conversation: Conversation, view: View) -> bytes:
    """The overlay as PNG."""
    return _png(draw_overlay(conversation, view), zlib.Z_RLE)


def write_masks(conversation: Conversation, view: View) -> bytes:
    """A zip file with one PNG per mask of the answers, 255 where the object is, named by number and label."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for layer in _answer_masks(conversation, view):
            name = f"{layer.number:02d}_{_file_name(layer.name)}.png"
            archive.writestr(name, _png(Image.fromarray(layer.to_mask().astype(np.uint8) * 255)))
    return stream.getvalue()


def write_coco(conversation: Conversation, view: View) -> bytes:
    """COCO annotations with RLE and scores, as JSON."""
    return _json(build_coco([_to_export(conversation, view)]))


def write_label_me(conversation: Conversation, view: View) -> bytes:
    """labelme's annotations, as JSON."""
    return _json(build_label_me(_to_export(conversation, view)))


@dataclass(frozen=True)
class Download:
    """A kind of file: what its button says, how the file is named after the image, and what writes it."""

    title: str
    ending: str
    write: Callable[[Conversation, View], bytes]


DOWNLOADS = (
    Download("Overlay PNG", "_overlay.png", write_overlay),
    Download("Mask PNGs", "_masks.zip", write_masks),
    Download("COCO JSON", "_coco.json", write_coco),
    Download("labelme JSON", ".json", write_label_me),  # labelme looks for the image's name with .json
)


def save_download(kind: Download, conversation: Conversation | None, view: View, folder: Path) -> Path:
    """Write a download into a folder, and return its path.

    Raises:
        ValueError: there is no image, or no mask to write.
    """
    if conversation is None:
        raise ValueError("image: got none, expected one to download: add an image first")
    content = kind.write(conversation, view)
    path = folder / (_file_name(Path(conversation.image.name).stem) + kind.ending)
    path.write_bytes(content)
    return path


def _to_export(conversation: Conversation, view: View) -> ExportImage:
    image = conversation.image
    questions = {mask.id: turn.question for turn in conversation.turns for mask in turn.masks}
    objects = [
        ExportObject(layer.to_mask(), (layer.label or "").strip() or DEFAULT_LABEL, layer.score, questions[layer.id])
        for layer in _answer_masks(conversation, view)
    ]
    return ExportImage(image.name, image.size, objects)


def _answer_masks(conversation: Conversation, view: View) -> list[MaskLayer]:
    masks = view.choose(conversation.masks)
    if not masks:
        raise ValueError("masks: got none that is switched on, expected one to download: ask for one, or switch it on")
    return masks


def _prefix_mask(layer: MaskLayer, tokens: int | None, size: tuple[int, int]) -> np.ndarray:
    shorter = [n for n in layer.prefixes if tokens is not None and n <= tokens]
    if tokens is None or tokens >= len(layer.codes) or not shorter:
        return layer.to_mask()
    rle = layer.prefixes[max(shorter)]
    return scale_mask(rle_to_mask(rle["counts"], rle["size"]), size)


def _png(image: Image.Image, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """Encode a PNG. A search for repetitions finds few in photographs: `Z_RLE` is faster, and their files smaller."""
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=1, compress_type=strategy)
    return stream.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def _file_name(text: str) -> str:
    return _FORBIDDEN.sub("_", text).strip(" .")[:_LONGEST_NAME] or "image"
