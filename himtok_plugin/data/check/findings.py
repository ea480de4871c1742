"""One row of a file that a training is to rely on: what is wrong with it, what it shows, and what it says.

Contract: `RowCheck` is sent to processes, and looks at lines. Images are the same if their names are COCO's for one id,
whatever release and folder, or else if their paths are. Does not know files of rows; ms-swift and torch are not needed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from himtok_plugin.data.samples import (
    ANSWER_COLUMNS,
    CODES,
    HISTORY_COLUMN,
    QUESTION_COLUMNS,
    as_list,
    parse_row,
    row_masks,
    row_messages,
)
from himtok_plugin.mask_text import (
    BOX_PLACEHOLDER,
    IMAGE_PLACEHOLDER,
    MASK_PLACEHOLDER,
    reference_placeholder_to_mask,
)
from himtok_plugin.masks.run_lengths import Runs
from himtok_plugin.masks.sources import load_mask
from himtok_plugin.validation import abridged

KNOWN_ROLES = ("system", "user", "assistant", "tool", "tool_call", "tool_response")
_FROM = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
# "COCO_train2014_000000581857_16.jpg" and "000000581857.jpg" are one image.
_COCO_NAME = re.compile(r"(?:COCO_(?:train|val|test)\d{4}_)?(\d{12})(?:_\d+)?$")


@dataclass(frozen=True)
class CheckedRow:
    """What a process says of one row."""

    faults: list[tuple[str, str]]
    masks: int
    boxes: int
    images: list[int]
    digest: int
    split: str
    made_for_training: bool


class RowCheck:
    """What a process does with some lines."""

    def __init__(self, root: Path | None) -> None:
        self._root = root

    def __call__(self, lines: list[bytes]) -> list[CheckedRow | None]:
        return [self._check(line) if line.strip() else None for line in lines]

    def _check(self, line: bytes) -> CheckedRow:
        digest = int.from_bytes(blake2b(line.strip(), digest_size=8).digest(), signed=True)
        try:
            row = parse_row(line)
        except ValueError as error:
            return CheckedRow([("not JSON", str(error))], 0, 0, [], digest, "", True)
        faults: list[tuple[str, str]] = []
        try:
            masks = row_masks(row) or []
        except ValueError as error:
            masks = []
            faults.append(("masks", str(error)))
        boxes = self._boxes(row, faults)
        self._text(row, masks, boxes, faults)
        size = self._images(row, faults)
        self._masks(masks, "masks", size, faults)
        try:
            ignored = as_list(row["ignore"], "ignore") if row.get("ignore") is not None else []
        except ValueError as error:
            ignored = []
            faults.append(("masks", str(error)))
        self._masks(ignored, "ignore", size, faults)
        codes = row.get(CODES)
        if codes is not None and (not isinstance(codes, list) or len(codes) != len(masks)):
            faults.append(("codes", f"{CODES} is {abridged(codes)}: expected one list for each of {len(masks)} masks"))
        source = row.get("source") if isinstance(row.get("source"), dict) else {}
        split = str(source.get("split", ""))
        name = f"{source.get('dataset', '')}:{split}"
        for_training = split in ("", "all") or split.startswith("train")
        return CheckedRow(faults, len(masks), len(boxes), image_ids(row, self._root), digest, name, for_training)

    def _text(self, row: dict, masks: list, boxes: list, faults: list[tuple[str, str]]) -> None:
        try:
            messages = messages_of(row)
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
        images = as_images(row)
        for mark, expected, held in (
            (MASK_PLACEHOLDER, len(masks), "masks"),
            (BOX_PLACEHOLDER, len(boxes), "objects.bbox"),
            (IMAGE_PLACEHOLDER, len(images), "images"),
        ):
            count = text.count(mark)
            left_out = mark == IMAGE_PLACEHOLDER and count == 0  # ms-swift puts them in front itself
            if count != expected and not left_out:
                faults.append(("placeholders", f"messages hold {count} {mark}, {held} holds {expected}"))

    def _boxes(self, row: dict, faults: list[tuple[str, str]]) -> list:
        objects = row.get("objects")
        boxes = objects.get("bbox", []) if isinstance(objects, dict) else []
        if objects is not None and (not isinstance(objects, dict) or not isinstance(boxes, list)):
            faults.append(("boxes", f"objects is {abridged(objects)}: expected lists ref and bbox"))
            return []
        for i, box in enumerate(boxes):
            ok = isinstance(box, list) and len(box) in (2, 4) and all(
                isinstance(v, int | float) and not isinstance(v, bool) and v == v for v in box
            )  # fmt: skip
            if not ok or (len(box) == 4 and not (box[0] < box[2] and box[1] < box[3])):
                faults.append(("boxes", f"objects.bbox[{i}] is {abridged(box)}: expected x1 < x2, y1 < y2"))
        return boxes

    def _images(self, row: dict, faults: list[tuple[str, str]]) -> tuple[int, int] | None:
        """(h, w) of the first image."""
        first = None
        for i, image in enumerate(as_images(row)):
            if not isinstance(image, str):
                faults.append(("images", f"images[{i}] is {abridged(image)}: expected a path"))
                continue
            if "://" in image or image.startswith("data:"):
                continue
            try:
                with Image.open(located(image, self._root)) as opened:
                    size = (opened.height, opened.width)
            except Exception as error:  # PIL's readers raise nearly anything on damaged files
                reason = " ".join(str(error).split()) or type(error).__name__
                faults.append(("images", f"images[{i}] {image!r} cannot be read ({reason})"))
                continue
            first = size if i == 0 else first
            if i == 0 and not _is_relative(row):
                self._within(row, size, faults)
        return first

    def _within(self, row: dict, size: tuple[int, int], faults: list[tuple[str, str]]) -> None:
        objects = row.get("objects")
        boxes = objects.get("bbox") if isinstance(objects, dict) else None
        ends = (size[1], size[0]) * 2
        for box in boxes if isinstance(boxes, list) else ():
            numbers = isinstance(box, list) and all(isinstance(value, int | float) for value in box)
            # A pixel more: conventions differ in whether the end belongs to a box.
            if numbers and not all(-1 <= value <= end + 1 for value, end in zip(box, ends, strict=False)):
                faults.append(("boxes", f"box {abridged(box)} reaches beyond its image of (h, w) = {size}"))

    def _masks(self, masks: list, name: str, size: tuple[int, int] | None, faults: list[tuple[str, str]]) -> None:
        for i, mask in enumerate(masks):
            try:
                if isinstance(mask, dict) and set(mask) >= {"counts", "size"}:
                    runs = Runs.from_rle(mask)
                    found, area = runs.size, runs.area
                else:
                    pixels = load_mask(located(mask, self._root))
                    found, area = pixels.shape, int(pixels.sum())
            except (ValueError, TypeError, KeyError) as error:
                faults.append(("masks", f"{name}[{i}]: {error}"))
                continue
            if size is not None and tuple(found) != size:
                faults.append(("masks", f"{name}[{i}] has (h, w) = {tuple(found)}: expected {size}, as its image"))
            if not area:
                faults.append(("masks", f"{name}[{i}] has no pixels"))


def _is_relative(row: dict) -> bool:
    """Whether boxes count in shares of the image."""
    objects = row.get("objects")
    return isinstance(objects, dict) and objects.get("bbox_type") == "norm1"


def messages_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """(role, text) of a row's messages, ms-swift's or the reference's, with `<mask>` where masks stand.

    Raises:
        ValueError: of another form.
    """
    messages = row_messages(row)
    if messages is None:
        columns = ("user", QUESTION_COLUMNS), ("assistant", ANSWER_COLUMNS)
        history = row.get(HISTORY_COLUMN) if isinstance(row.get(HISTORY_COLUMN), list) else []
        pairs = [
            pair
            for turn in history
            if isinstance(turn, list)
            for pair in zip(("user", "assistant"), turn, strict=False)
        ]
        pairs += [(role, row.get(column)) for role, own in columns for column in own]
        return [(role, reference_placeholder_to_mask(text)) for role, text in pairs if isinstance(text, str)]
    if not isinstance(messages, list):
        raise ValueError(f"messages is {abridged(messages)}: expected a list")
    found = []
    for i, message in enumerate(messages):
        role = message.get("role", _FROM.get(message.get("from"))) if isinstance(message, dict) else None
        text = message.get("content", message.get("value")) if isinstance(message, dict) else None
        if role not in KNOWN_ROLES or not isinstance(text, str):
            raise ValueError(f"messages[{i}] is {abridged(message)}: expected a role and its content")
        found.append((role, reference_placeholder_to_mask(text)))
    return found


def as_images(row: dict[str, Any]) -> list[Any]:
    """A row's images, as paths where they are paths."""
    images = row.get("images")
    if images is None:
        images = row.get("image")
    images = images if isinstance(images, list) else [] if images is None else [images]
    return [image.get("path") if isinstance(image, dict) else image for image in images]


def located(source: Any, root: Path | None) -> Any:
    """A path below the root, if it is relative and a root is given."""
    if isinstance(source, str) and root is not None and not os.path.isabs(source):
        return str(root / source)
    return source


def image_key(image: str, root: Path | None = None) -> str:
    """What two names of one image have in common."""
    match = _COCO_NAME.match(Path(image).stem)
    return f"coco/{match[1]}" if match else os.path.abspath(located(image, root))


def image_ids(row: dict[str, Any], root: Path | None) -> list[int]:
    keys = [image_key(image, root) for image in as_images(row) if isinstance(image, str)]
    return [int.from_bytes(blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()) for key in keys]
