"""Checks one sample: its faults, its images, and the text of its messages.

Contract: a `SampleChecker` is sent to worker processes and checks lines. Two images are the same if their names have
the same COCO id, whatever release and folder, or else if their paths are equal.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from himtok_plugin.data.messages import parse_messages
from himtok_plugin.data.samples import CODES, as_list, is_box, parse_row, row_masks
from himtok_plugin.files.images import UPRIGHT, ImageHeader, open_header
from himtok_plugin.mask_text import BOX_PLACEHOLDER, IMAGE_PLACEHOLDER, MASK_PLACEHOLDER
from himtok_plugin.masks import load_mask
from himtok_plugin.masks.run_lengths import Runs
from himtok_plugin.validation import abridged

Faults = list[tuple[str, str]]  # (kind, description)

# "COCO_train2014_000000581857_16.jpg" and "000000581857.jpg" are the same image.
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})(?:_\d+)?$")


@dataclass(frozen=True)
class CheckedSample:
    """The result for one sample.

    Attributes:
        masks, boxes: their numbers.
        images: an id of each image.
        digest: a hash of the line.
        split: "dataset:split", from the column `source`.
        made_for_training: whether its split is one for training.
        turned: the ids of those images that are turned upright by their EXIF orientation.
    """

    faults: Faults
    masks: int
    boxes: int
    images: list[int]
    digest: int
    split: str
    made_for_training: bool
    turned: Sequence[int] = ()


class SampleChecker:
    """Checks lines of a file of samples; called in worker processes.

    Args:
        root: folder of relative images and masks; None: the working directory.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root

    def __call__(self, lines: list[bytes]) -> list[CheckedSample | None]:
        return [self._check(line) if line.strip() else None for line in lines]

    def _check(self, line: bytes) -> CheckedSample:
        digest = int.from_bytes(blake2b(line.strip(), digest_size=8).digest(), signed=True)
        try:
            row = parse_row(line)
        except ValueError as error:
            return CheckedSample([("not JSON", str(error))], 0, 0, [], digest, "", True)
        faults: Faults = []
        try:
            masks = row_masks(row) or []
        except ValueError as error:
            masks = []
            faults.append(("masks", str(error)))
        boxes = self._check_boxes(row, faults)
        self._check_text(row, masks, boxes, faults)
        header, turned = self._check_images(row, faults)
        self._check_masks(masks, "masks", header, faults)
        try:
            ignored = as_list(row["ignore"], "ignore") if row.get("ignore") is not None else []
        except ValueError as error:
            ignored = []
            faults.append(("masks", str(error)))
        self._check_masks(ignored, "ignore", header, faults)
        codes = row.get(CODES)
        if codes is not None and (not isinstance(codes, list) or len(codes) != len(masks)):
            faults.append(("codes", f"{CODES} is {abridged(codes)}: expected one list for each of {len(masks)} masks"))
        source = row.get("source")
        source = source if isinstance(source, dict) else {}
        split = str(source.get("split", ""))
        name = f"{source.get('dataset', '')}:{split}"
        for_training = split in ("", "all") or split.startswith("train")
        images = image_ids(row, self._root)
        return CheckedSample(faults, len(masks), len(boxes), images, digest, name, for_training, turned)

    def _check_text(self, row: dict[str, Any], masks: list, boxes: list, faults: Faults) -> None:
        try:
            messages = parse_messages(row)
        except ValueError as error:
            faults.append(("messages", str(error)))
            return
        if not messages:
            if not masks:
                faults.append(("messages", "has neither messages nor masks"))
            return
        if all(role != "assistant" for role, _ in messages):
            faults.append(("messages", "no message of the assistant"))
        text = "".join(content for _, content in messages)
        images = row_images(row)
        for mark, expected, held in (
            (MASK_PLACEHOLDER, len(masks), "masks"),
            (BOX_PLACEHOLDER, len(boxes), "objects.bbox"),
            (IMAGE_PLACEHOLDER, len(images), "images"),
        ):
            count = text.count(mark)
            is_implied = mark == IMAGE_PLACEHOLDER and count == 0  # ms-swift adds missing <image> in front
            if count != expected and not is_implied:
                faults.append(("placeholders", f"messages hold {count} {mark}, {held} holds {expected}"))

    def _check_boxes(self, row: dict[str, Any], faults: Faults) -> list:
        objects = row.get("objects")
        boxes = objects.get("bbox", []) if isinstance(objects, dict) else []
        if objects is not None and (not isinstance(objects, dict) or not isinstance(boxes, list)):
            faults.append(("boxes", f"objects is {abridged(objects)}: expected lists ref and bbox"))
            return []
        for i, box in enumerate(boxes):
            if not is_box(box) or (len(box) == 4 and not (box[0] < box[2] and box[1] < box[3])):
                faults.append(("boxes", f"objects.bbox[{i}] is {abridged(box)}: expected x1 < x2, y1 < y2"))
        return boxes

    def _check_images(self, row: dict[str, Any], faults: Faults) -> tuple[ImageHeader | None, list[int]]:
        """Check the images; returns the header of the first one, and the ids of those that are turned."""
        first: ImageHeader | None = None
        turned: list[int] = []
        for i, image in enumerate(row_images(row)):
            if not isinstance(image, str):
                faults.append(("images", f"images[{i}] is {abridged(image)}: expected a path"))
                continue
            if "://" in image or image.startswith("data:"):
                continue
            try:
                header = open_header(join_root(image, self._root), whole=True)
            except Exception as error:  # PIL's readers raise nearly anything on damaged files
                reason = " ".join(str(error).split()) or type(error).__name__
                faults.append(("images", f"images[{i}] {image!r} cannot be read ({reason})"))
                continue
            try:
                header.check_depth(f"images[{i}] {image!r}")
            except ValueError as error:
                faults.append(("images", str(error)))
            first = header if i == 0 else first
            if header.orientation != UPRIGHT:
                turned.append(_image_id(image, self._root))
            if i == 0 and not _has_relative_boxes(row):
                self._check_boxes_within(row, header.size, faults)
        return first, turned

    def _check_boxes_within(self, row: dict[str, Any], size: tuple[int, int], faults: Faults) -> None:
        objects = row.get("objects")
        boxes = objects.get("bbox") if isinstance(objects, dict) else None
        ends = (size[1], size[0]) * 2
        for box in boxes if isinstance(boxes, list) else ():
            numbers = is_box(box)
            # One pixel of tolerance: conventions differ in whether the end of a box is inclusive.
            if numbers and not all(-1 <= value <= end + 1 for value, end in zip(box, ends, strict=False)):
                faults.append(("boxes", f"box {abridged(box)} extends beyond its image of (h, w) = {size}"))

    def _check_masks(self, masks: list, name: str, header: ImageHeader | None, faults: Faults) -> None:
        for i, mask in enumerate(masks):
            try:
                if isinstance(mask, dict) and set(mask) >= {"counts", "size"}:
                    runs = Runs.from_rle(mask)
                    found, area = runs.size, runs.area
                else:
                    pixels = load_mask(join_root(mask, self._root))
                    found, area = pixels.shape, int(pixels.sum())
            except (ValueError, TypeError, KeyError) as error:
                faults.append(("masks", f"{name}[{i}]: {error}"))
                continue
            if header is not None and tuple(found) != header.size:
                expected = f"expected {header.size}, the size of its image{header.frame_note}"
                faults.append(("masks", f"{name}[{i}] has (h, w) = {tuple(found)}: {expected}"))
            if not area:
                faults.append(("masks", f"{name}[{i}] has no pixels"))


def _has_relative_boxes(row: dict[str, Any]) -> bool:
    """Whether boxes are in relative coordinates."""
    objects = row.get("objects")
    return isinstance(objects, dict) and objects.get("bbox_type") == "norm1"


def row_images(row: dict[str, Any]) -> list[Any]:
    """The images of a sample: paths, or other values unchanged."""
    images = row.get("images")
    if images is None:
        images = row.get("image")
    images = images if isinstance(images, list) else [] if images is None else [images]
    return [image.get("path") if isinstance(image, dict) else image for image in images]


def join_root(source: Any, root: Path | None) -> Any:
    """Put the root in front of a relative path."""
    if isinstance(source, str) and root is not None and not os.path.isabs(source):
        return str(root / source)
    return source


def image_key(image: str, root: Path | None = None) -> str:
    """A key that is equal for all names of the same image."""
    match = _COCO_NAME.match(Path(image).stem)
    return f"coco/{match[1]}" if match else os.path.abspath(join_root(image, root))


def image_ids(row: dict[str, Any], root: Path | None) -> list[int]:
    """A hash of the key of each image."""
    return [_image_id(image, root) for image in row_images(row) if isinstance(image, str)]


def _image_id(image: str, root: Path | None) -> int:
    key = image_key(image, root)
    return int.from_bytes(blake2b(key.encode("utf-8", "replace"), digest_size=8).digest())
