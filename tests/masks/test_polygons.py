"""Outlines fill to the mask that they were made of, whatever its shape."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from himtok_plugin.masks.polygons import mask_polygons, polygons_to_mask

RING = np.ones((7, 9), bool)
RING[2:5, 3:6] = False


def picture(*rows: str) -> np.ndarray:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def assert_fills_back(mask: np.ndarray) -> None:
    polygons = mask_polygons(mask)
    assert np.array_equal(polygons_to_mask(polygons, mask.shape), mask)


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


@settings(deadline=None, max_examples=200)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_mask_fills_back(mask):
    assert_fills_back(mask)


def test_noise_of_many_holes_fills_back():
    assert_fills_back(np.random.default_rng(0).random((120, 150)) < 0.7)
