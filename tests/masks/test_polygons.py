"""polygons.py: outlines fill back to the very mask that they were made from, and bad polygons are named."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco
from scipy import ndimage

from himtok_plugin.masks.polygons import mask_polygons, polygons_to_mask

RING = np.ones((7, 9), bool)
RING[2:5, 3:6] = False


def picture(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def assert_fills_back(mask: np.ndarray) -> None:
    polygons = mask_polygons(mask)
    assert np.array_equal(polygons_to_mask(polygons, mask.shape), mask)
    if polygons:
        encoded = coco.merge(coco.frPyObjects(polygons, *mask.shape))
        assert np.array_equal(coco.decode(encoded).astype(bool), mask)


def signed_area(polygon: list[int]) -> float:
    """Positive for a clockwise polygon, as y points down."""
    x, y = np.array(polygon).reshape(-1, 2).T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def test_empty_mask_has_no_polygon():
    assert mask_polygons(np.zeros((4, 5), bool)) == []


def test_rectangle_has_four_corners_clockwise():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    assert mask_polygons(mask) == [[2, 1, 7, 1, 7, 4, 2, 4]]


def test_every_part_has_a_polygon():
    mask = picture("##..#", "##...", "....#")
    assert sorted(map(tuple, mask_polygons(mask))) == [
        (0, 0, 2, 0, 2, 2, 0, 2),
        (4, 0, 5, 0, 5, 1, 4, 1),
        (4, 2, 5, 2, 5, 3, 4, 3),
    ]


def test_hole_stays_a_hole():
    assert len(mask_polygons(RING)) == 2
    assert_fills_back(RING)


@pytest.mark.parametrize(
    "mask",
    [
        picture("#.", ".#"),  # two parts that touch at a corner
        picture("##.", "#.#", "###"),  # a hole open across a corner only
        picture("####", "#..#", "#.##", "####"),
        picture("#####", "#.#.#", "#####", "#.#.#", "#####"),
        picture("#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"),  # nested
        np.ones((1, 1), bool),
        np.ones((5, 1), bool),
    ],
)
def test_awkward_shapes_fill_back(mask):
    assert_fills_back(mask)


MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@settings(deadline=None, max_examples=300)
@given(MASKS)
def test_any_mask_fills_back(mask):
    assert_fills_back(mask)


@settings(deadline=None, max_examples=300)
@given(MASKS)
def test_polygons_are_clockwise_turn_at_every_corner_and_share_no_pixel(mask):
    polygons = mask_polygons(mask)
    assert sum(map(signed_area, polygons)) == mask.sum()
    for polygon in polygons:
        steps = np.diff(np.array([*polygon, *polygon[:2]]).reshape(-1, 2), axis=0)
        assert ((steps != 0).sum(axis=1) == 1).all()  # along pixel borders
        assert ((steps[:, 0] != 0) != (np.roll(steps[:, 0], 1) != 0)).all()
        assert signed_area(polygon) > 0


@settings(deadline=None, max_examples=300)
@given(MASKS)
def test_parts_without_holes_are_not_cut(mask):
    filled = np.zeros_like(mask)
    parts, count = ndimage.label(mask)
    background = ndimage.label(np.pad(~mask, 1, constant_values=True), np.ones((3, 3)))[0][1:-1, 1:-1]
    beside_holes = ndimage.binary_dilation(background > 1) & mask
    holed = np.unique(parts[beside_holes])
    filled[~np.isin(parts, holed)] = True
    assert len(mask_polygons(mask & filled)) == count - len(holed)


@pytest.mark.parametrize("sigma", [0, 1, 3])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_noise_with_many_holes_fills_back(sigma, share):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((120, 150)), sigma)
    assert_fills_back(noise < np.quantile(noise, share))


def test_polygons_come_in_the_order_of_their_first_pixels():
    polygons = mask_polygons(np.random.default_rng(0).random((40, 50)) < 0.5)
    first_pixels = [(polygon[1], polygon[0]) for polygon in polygons]
    assert first_pixels == sorted(first_pixels)


def test_polygons_are_united():
    mask = polygons_to_mask([[0, 0, 4, 0, 4, 3, 0, 3], [6, 1, 8, 1, 8, 4, 6, 4]], [5, 10])
    expected = np.zeros((5, 10), dtype=bool)
    expected[0:3, 0:4] = expected[1:4, 6:8] = True
    assert np.array_equal(mask, expected)
    assert not polygons_to_mask([], [5, 10]).any()


HUGE = 10**401  # beyond float64
TOO_LONG = 10**5000  # Python refuses to write it as text


@pytest.mark.parametrize(
    "polygon",
    [
        [0, 0, 5, 0, 5, 99],
        [-11, 0, 5, 0, 5, 5],
        [11, 0, 15, 0, 15, 5],
        [-5, -5, -1, -5, -1, -1],
        [0, 0, 5, 0, 5],
        [0, 0, 5, 5],
        [],
        [0, 0, 5, 0, 5, np.nan],
        [0, 0, 5, 0, 5, np.inf],
        [0, 0, 5, 0, 5, 1e308],
        [0, 0, 5, 0, 5, HUGE],
        [0, 0, 5, 0, 5, -TOO_LONG],
        [0, 0, 5, 0, 5, True],
        [0, 0, 5, 0, 5, "5"],
        [0, 0, 5, 0, 5, None],
        np.array([0, 0, 5, 0, 5, 5], bool),
        ["a"] * 6,
        "0 0 5 0 5 5",
        4,
        None,
        {"x": 5},
        [[0, 0], [5, 0], [5, 5]],
    ],
)
def test_a_bad_polygon_is_refused_by_index(polygon):
    with pytest.raises(ValueError, match=r"polygons\[1\]") as error:
        polygons_to_mask([[0, 0, 4, 0, 4, 4], polygon], [10, 10])
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_deep_nesting_is_a_bad_polygon():
    nested: list = []
    for _ in range(900):
        nested = [nested]
    for polygons in (nested, [nested], [[nested, 0, 5, 0, 5, 5]]):
        with pytest.raises(ValueError, match=r"polygons\[0\]"):
            polygons_to_mask(polygons, [10, 10])


def test_an_outline_that_takes_gigabytes_to_draw_is_refused():
    zigzag = np.tile([0, 0, 16000, 16000], 2000).astype(float)
    with pytest.raises(ValueError, match="outline"):
        polygons_to_mask([zigzag], [16000, 16000])


def test_what_reaches_beyond_the_image_is_cut_off_as_by_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(200):
        polygons = [rng.uniform(-1, 2, (5, 2)) * (30, 20) for _ in range(3)]
        polygons = [np.concatenate([p, [[15, 10]]]).ravel().tolist() for p in polygons]  # never outside altogether
        expected = coco.decode(coco.merge(coco.frPyObjects(polygons, 20, 30))).astype(bool)
        assert np.array_equal(polygons_to_mask(polygons, (20, 30)), expected)


def test_polygons_take_little_longer_than_in_pycocotools():
    rng = np.random.default_rng(0)
    angles = np.sort(rng.uniform(0, 2 * np.pi, (200, 30)))
    shapes = rng.uniform(50, 970, (200, 1, 2)) + 30 * np.stack([np.cos(angles), np.sin(angles)], axis=2)
    polygons = shapes.reshape(200, -1).tolist()

    def seconds(function) -> float:
        durations = []
        for _ in range(5):
            begin = time.perf_counter()
            function()
            durations.append(time.perf_counter() - begin)
        return min(durations)

    ours = seconds(lambda: polygons_to_mask(polygons, (1024, 1024)))
    theirs = seconds(lambda: coco.decode(coco.merge(coco.frPyObjects(polygons, 1024, 1024))))
    assert ours < 10 * theirs  # one image for each polygon takes 30 to 60 times as long
