"""Writes tiny datasets, and decodes their masks with other code than the package's."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image
from pycocotools import mask as coco

from himtok_plugin.data.catalog import FORMATS, open_reader
from himtok_plugin.data.formats.reader import Source
from himtok_plugin.data.skip_log import SkipLog


def write_image(path, size=(48, 64), seed=0, orientation=None):
    """An image of noise; `orientation` is that of its EXIF data, None: no EXIF data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def blob(size=(48, 64), seed=0):
    """A mask of several parts with a hole: bool (h, w)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, bool)
    for _ in range(3):
        y, x, r = rng.integers(8, size[0] - 8), rng.integers(8, size[1] - 8), rng.integers(4, 8)
        mask |= (rows - y) ** 2 + (columns - x) ** 2 <= r**2
    mask[y, x] = False
    return mask


def polygon(seed=0, size=(48, 64)):
    """A star-shaped polygon [x1, y1, …] with fractions of pixels."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    centre = rng.uniform(18, min(size) - 18, 2)
    points = centre + rng.uniform(5, 15, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
    return [round(float(v), 2) for v in points.ravel()]


def by_pycocotools(segmentation, size):
    """A COCO segmentation as pycocotools' COCO class decodes it: bool (h, w)."""
    h, w = size
    if isinstance(segmentation, list):
        rle = coco.merge(coco.frPyObjects(segmentation, h, w))
    elif isinstance(segmentation["counts"], list):
        rle = coco.frPyObjects(segmentation, h, w)
    else:
        rle = segmentation
    return coco.decode(rle).astype(bool)


def uncompressed(mask):
    """Uncompressed COCO RLE."""
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + runs}


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def decoded(rle):
    return coco.decode(rle).astype(bool)


def coco_file(images, annotations, categories=((1, "dog"), (18, "traffic light"))):
    return {
        "info": {"description": "tests"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name, "supercategory": "x"} for i, name in categories],
    }


def coco_annotation(id, image_id, segmentation, size=(48, 64), category_id=1, **more):
    mask = by_pycocotools(segmentation, size) if segmentation else np.zeros(size, bool)
    box = coco.toBbox(coco.encode(np.asfortranarray(mask, dtype=np.uint8))).tolist()
    entry = {"id": id, "image_id": image_id, "category_id": category_id, "segmentation": segmentation, "bbox": box}
    return {**entry, "area": float(mask.sum()), "iscrowd": 0, **more}


def records(name, root, split=None, **more):
    """The records of a dataset; skipped annotations are ignored."""
    source = Source(name, root, split or FORMATS[name].splits[0], **more)
    log = SkipLog()
    reader = open_reader(source)
    for item in reader.list_items(log):
        yield from reader.read_records(item, log)


def png(mask):
    """The bytes of a mask as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, "PNG")
    return stream.getvalue()


def pairs(flat):
    """[x1, y1, x2, y2, ...] as [[x1, y1], [x2, y2], ...]."""
    return np.reshape(flat, (-1, 2)).tolist()
