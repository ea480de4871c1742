"""Photographs with annotations in COCO's format: a split by photograph, and changed photographs for training.

Few photographs teach an LMM where things usually are rather than to look. So each training photograph is written
several times: mirrored, cut to a part of it, and with objects of other photographs pasted in (copy-paste,
arXiv 2012.07177). Changed photographs have annotations of their own, so everything else treats them like any others.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from himtok_plugin import load_mask
from himtok_plugin.masks import to_rle

HELD_OUT_SHARE = 10  # one photograph of ten
LONG_SIDE = 448  # of training photographs, in pixels: the LMM sees no more
MIN_CROP, MAX_CROP = 0.5, 0.95  # share of the height and of the width that remains
MAX_PASTED = 3
PASTED_SIDES = (0.15, 0.6)  # height or width of a pasted object, as a share of that of the photograph
MIN_SOURCE_AREA = 32**2  # pixels of an object to paste: smaller ones are blurred
MIN_VISIBLE = 0.2  # share of an object that has to remain visible behind pasted ones


@dataclass(frozen=True)
class Region:
    """An annotated object or crowd: a bool (h, w) mask, COCO's category id, and whether it is a crowd."""

    mask: np.ndarray
    category_id: int
    iscrowd: int


@dataclass(frozen=True)
class Photograph:
    """An image and its annotations; `is_whole`: it shows all that the original shows, and nothing else."""

    id: int
    image: Image.Image
    regions: tuple[Region, ...]
    is_whole: bool = True


class CocoFolder:
    """Photographs of a folder in COCO's layout: `instances.json` and `images/`, perhaps `captions.json`."""

    def __init__(self, folder: Path):
        content = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
        captions = folder / "captions.json"
        self.captions: dict[str, list[str]] = json.loads(captions.read_text()) if captions.is_file() else {}
        self.categories: list[dict[str, Any]] = content["categories"]
        self.names: dict[int, str] = {category["id"]: category["name"] for category in self.categories}
        self.images: dict[int, dict[str, Any]] = {image["id"]: image for image in content["images"]}
        self.annotations: dict[int, list[dict[str, Any]]] = defaultdict(list)  # by the image's id
        for annotation in content["annotations"]:
            self.annotations[annotation["image_id"]].append(annotation)
        self._folder = folder

    def all_ids(self) -> list[int]:
        return sorted(self.images)

    def ids(self, held_out: bool) -> list[int]:
        """Ids of the photographs of one half of the split, which depends on nothing but these ids."""
        return [id for id in self.all_ids() if is_held_out(id) == held_out]

    def path(self, id: int) -> Path:
        return self._folder / "images" / self.images[id]["file_name"]

    def load(self, id: int) -> Photograph:
        with Image.open(self.path(id)) as file:
            return Photograph(id, file.convert("RGB"), self.load_regions(id))

    def load_regions(self, id: int) -> tuple[Region, ...]:
        size = self.images[id]["height"], self.images[id]["width"]
        return tuple(
            Region(load_segmentation(one["segmentation"], size), one["category_id"], one["iscrowd"])
            for one in self.annotations[id]
        )


def is_held_out(image_id: int) -> bool:
    return int(hashlib.md5(str(image_id).encode()).hexdigest(), 16) % HELD_OUT_SHARE == 0


def load_segmentation(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Load COCO's polygons or RLE as a bool (h, w) mask."""
    if isinstance(segmentation, list):
        segmentation = {"polygons": segmentation, "size": list(size)}
    return load_mask(segmentation, size)


def write_photographs(folder: Path, photographs: Iterable[Photograph], categories: list[dict[str, Any]]) -> None:
    """Write photographs to a folder in COCO's layout. Those with the same id get names of their own."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, photograph in enumerate(photographs, start=1):
        name = f"{number:06d}_{photograph.id}.jpg"
        photograph.image.save(folder / "images" / name, quality=92)
        width, height = photograph.image.size
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        images[-1] |= {"original_id": photograph.id, "is_whole": photograph.is_whole}
        for region in photograph.regions:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": region.category_id,
                    "iscrowd": region.iscrowd,
                    "area": int(region.mask.sum()),
                    "segmentation": to_rle(region.mask),
                }
            )
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content), encoding="utf-8")


def make_variants(source: CocoFolder, ids: list[int], number: int, seed: int) -> Iterable[Photograph]:
    """Yield each photograph `number` times: as it is, mirrored, then with random cuts and pasted objects."""
    rng = np.random.default_rng(seed)
    cutouts = Cutouts()
    for id in ids:
        cutouts.add(resize(source.load(id)))
    for id in ids:
        original = resize(source.load(id))
        for variant in range(number):
            photograph = mirror(original) if variant % 2 else original
            if variant >= 2:
                photograph = paste(crop(photograph, rng), cutouts, rng)
            yield photograph


def resize(photograph: Photograph) -> Photograph:
    """Make the longer side `LONG_SIDE`, unless it is shorter already."""
    width, height = photograph.image.size
    factor = min(1.0, LONG_SIDE / max(width, height))
    size = round(width * factor), round(height * factor)
    regions = (replace(region, mask=resize_mask(region.mask, size)) for region in photograph.regions)
    return replace(photograph, image=photograph.image.resize(size, Image.BICUBIC), regions=keep_visible(regions))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a bool mask to (width, height)."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.BILINEAR)) >= 128


def keep_visible(regions: Iterable[Region]) -> tuple[Region, ...]:
    return tuple(region for region in regions if region.mask.any())


def mirror(photograph: Photograph) -> Photograph:
    """Exchange left and right."""
    image = photograph.image.transpose(Image.FLIP_LEFT_RIGHT)
    return replace(
        photograph,
        image=image,
        regions=tuple(replace(region, mask=region.mask[:, ::-1]) for region in photograph.regions),
    )


def crop(photograph: Photograph, rng: np.random.Generator) -> Photograph:
    """Cut out a random part."""
    width, height = photograph.image.size
    w, h = (
        round(side * share) for side, share in zip((width, height), rng.uniform(MIN_CROP, MAX_CROP, 2), strict=True)
    )
    x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
    regions = (replace(region, mask=region.mask[y : y + h, x : x + w]) for region in photograph.regions)
    return replace(
        photograph, image=photograph.image.crop((x, y, x + w, y + h)), regions=keep_visible(regions), is_whole=False
    )


class Cutouts:
    """Objects cut out of photographs, by category; categories are drawn alike, so that rare ones are seen as often."""

    def __init__(self) -> None:
        self._by_category: dict[int, list[tuple[int, Image.Image, np.ndarray]]] = defaultdict(list)

    def add(self, photograph: Photograph) -> None:
        for region in photograph.regions:
            if region.iscrowd or region.mask.sum() < MIN_SOURCE_AREA:
                continue
            rows, columns = (np.flatnonzero(region.mask.any(axis=axis)) for axis in (1, 0))
            top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            picture = photograph.image.crop((left, top, right, bottom))
            self._by_category[region.category_id].append((photograph.id, picture, region.mask[top:bottom, left:right]))

    def draw(self, other_than: int, rng: np.random.Generator) -> tuple[int, Image.Image, np.ndarray] | None:
        """Draw (category id, picture, mask) of another photograph than that of the id `other_than`."""
        category = int(rng.choice(sorted(self._by_category)))
        fitting = [one for one in self._by_category[category] if one[0] != other_than]
        if not fitting:
            return None
        _, picture, mask = fitting[rng.integers(len(fitting))]
        return category, picture, mask


def paste(photograph: Photograph, cutouts: Cutouts, rng: np.random.Generator) -> Photograph:
    """Paste up to `MAX_PASTED` objects at random places, in front of all others."""
    image, regions = photograph.image.copy(), list(photograph.regions)
    width, height = image.size
    for _ in range(rng.integers(MAX_PASTED + 1)):
        drawn = cutouts.draw(photograph.id, rng)
        if drawn is None:
            continue
        category, picture, mask = drawn
        factor = rng.uniform(*PASTED_SIDES) / max(picture.width / width, picture.height / height)
        size = max(round(picture.width * factor), 1), max(round(picture.height * factor), 1)
        picture, mask = picture.resize(size, Image.BICUBIC), resize_mask(mask, size)
        if rng.random() < 0.5:
            picture, mask = picture.transpose(Image.FLIP_LEFT_RIGHT), mask[:, ::-1]
        x, y = int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1))
        pasted = np.zeros((height, width), bool)
        pasted[y : y + size[1], x : x + size[0]] = mask
        if not pasted.any() or any(
            (region.mask & ~pasted).sum() < MIN_VISIBLE * region.mask.sum() for region in regions
        ):
            continue  # it would hide an object
        image.paste(picture, (x, y), Image.fromarray(mask.astype(np.uint8) * 255))
        regions = [replace(region, mask=region.mask & ~pasted) for region in regions]
        regions.append(Region(pasted, category, 0))
    return replace(photograph, image=image, regions=tuple(regions), is_whole=False)
