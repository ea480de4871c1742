"""Boxes, clicks and strokes as masks of the image's size."""

import numpy as np
import pytest
from fake_client import disc

from himtok_plugin.app.regions import CLICK_RADIUS, make_region_mask

SIZE = 40, 100  # (h, w)


def test_a_box_covers_its_pixels_whichever_corner_comes_first():
    expected = np.zeros(SIZE, bool)
    expected[10:30, 20:50] = True
    for x1, x2 in ((0.2, 0.5), (0.5, 0.2)):
        region = {"kind": "box", "x1": x1, "y1": 0.75, "x2": x2, "y2": 0.25}
        assert np.array_equal(make_region_mask(region, SIZE), expected)


def test_a_click_beside_all_masks_is_a_small_disc():
    mask = make_region_mask({"kind": "click", "x": 0.5, "y": 0.5, "mask": None}, SIZE)
    assert mask[20, 50] and abs(int(mask.sum()) - np.pi * (CLICK_RADIUS * 100) ** 2) < 15


def test_a_click_at_a_mask_is_that_mask():
    known = disc(SIZE, 0.3, 0.5, 0.1)
    assert make_region_mask({"kind": "click", "x": 0.3, "y": 0.5, "mask": "m1"}, SIZE, {"m1": known}) is known


def test_a_stroke_covers_what_lies_within_its_radius():
    mask = make_region_mask({"kind": "stroke", "points": [[0.2, 0.5], [0.8, 0.5]], "radius": 0.05}, SIZE)
    assert mask[20, 20:80].all() and mask[17:23, 50].all() and not mask[:13].any() and not mask[28:].any()


@pytest.mark.parametrize(
    "region",
    [
        {"kind": "box", "x1": 1, "y1": 1, "x2": 1, "y2": 1},
        {"kind": "click", "x": 1, "y": 1},
        {"kind": "stroke", "points": [[1, 1]], "radius": 1e-9},
        {"kind": "stroke", "points": [[-3, 7]], "radius": 0.01},
    ],
)
def test_every_region_has_a_pixel_also_beyond_the_border(region):
    assert make_region_mask(region, SIZE).any()


@pytest.mark.parametrize(
    "region",
    [
        None,
        {},
        {"kind": "star"},
        {"kind": "box", "x1": 0, "y1": 0, "x2": "1", "y2": 1},
        {"kind": "click", "x": float("nan"), "y": 0},
        {"kind": "click", "x": 0, "y": 0, "mask": "unknown"},
        {"kind": "stroke", "points": [], "radius": 0.1},
        {"kind": "stroke", "points": [[0.5]], "radius": 0.1},
        {"kind": "stroke", "points": [[0.5, 0.5]], "radius": 9},
    ],
)
def test_a_malformed_region_is_refused(region):
    with pytest.raises(ValueError, match="region: got"):
        make_region_mask(region, SIZE, {})
