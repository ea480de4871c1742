"""How close outlines are to their masks, and how many points they have: the figures of docs/export.md."""

import time

import numpy as np
from PIL import Image

from himtok_plugin.export.outlines import join_polygons, outline_mask
from himtok_plugin.masks.polygons import polygons_to_mask

RADII = {(480, 640): (8, 20, 60, 200), (3000, 4000): (100, 400, 1200)}  # (h, w) -> pixels


def make_mask(size, radius, rng):
    """A smooth object with holes and parts: a noisy disc."""
    side = 2 * radius
    noise = Image.fromarray(rng.normal(size=(9, 9)).astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    y, x = np.ogrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    mask = np.zeros(size, bool)
    top, left = (int(rng.integers(0, extent - side + 1)) for extent in size)
    mask[top : top + side, left : left + side] = np.asarray(noise) * 0.4 + 1 - np.hypot(x, y) * 1.4 > 0.3
    return mask


def measure(masks, tolerance):
    """Mean and least IoU, mean number of points, seconds of CPU for each mask."""
    begin = time.process_time()
    outlines = [outline_mask(mask, tolerance) for mask in masks]
    seconds = (time.process_time() - begin) / len(masks)
    filled = [polygons_to_mask([join_polygons(each)], mask.shape) for each, mask in zip(outlines, masks, strict=True)]
    ious = [(a & b).sum() / (a | b).sum() for a, b in zip(filled, masks, strict=True)]
    points = np.mean([sum(map(len, each)) / 2 for each in outlines])
    return np.mean(ious), min(ious), points, seconds


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    for size, radii in RADII.items():
        for radius in radii:
            count = 40 if size[0] < 1000 else 6
            masks = [mask for mask in (make_mask(size, radius, rng) for _ in range(count)) if mask.any()]
            for tolerance in (0, 1):
                mean, least, points, seconds = measure(masks, tolerance)
                figures = f"IoU {mean:.4f}, least {least:.4f}, {points:.0f} points, {seconds * 1000:.1f} ms"
                print(f"{size}, about {2 * radius} pixels, tolerance {tolerance}: {figures}")
