"""Generated masks of objects: sizes, determinism, and moved masks."""

import numpy as np
import pytest

from himtok_plugin.data.generated.object_masks import (
    MIN_PIXELS,
    PICTURE_SIZES,
    generate_object_mask,
    generate_object_masks,
    move_mask,
)


def test_masks_have_the_sizes_of_photographs_and_are_never_empty():
    masks = list(generate_object_masks(40, seed=3))
    assert len(masks) == 40
    assert {mask.shape for mask in masks} <= set(PICTURE_SIZES) and {mask.dtype for mask in masks} == {np.dtype(bool)}
    assert min(mask.sum() for mask in masks) >= MIN_PIXELS


def test_the_seed_decides_everything():
    first, again, other = (list(generate_object_masks(5, seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_areas_range_from_small_to_nearly_the_whole_image():
    rng = np.random.default_rng(0)
    areas = np.array([generate_object_mask((120, 160), rng).mean() for _ in range(300)])
    assert areas.min() < 0.002 and areas.max() > 0.3
    assert 0.2 < (areas < 32**2 / (480 * 640)).mean() < 0.6  # COCO's "small"


def test_move_mask_keeps_the_picture_and_most_of_the_object():
    mask = np.zeros((60, 80), bool)
    mask[20:30, 10:40] = True
    rng = np.random.default_rng(0)
    places = set()
    for _ in range(30):
        seen = move_mask(mask, rng)
        assert seen.shape == mask.shape and seen.dtype == bool and seen.sum() >= MIN_PIXELS
        rows, columns = np.nonzero(seen)
        places.add((round(rows.mean() / 10), round(columns.mean() / 10), round(float(np.sqrt(seen.sum())) / 5)))
    assert len(places) > 15


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="count: got -1"):
        list(generate_object_masks(-1, 0))
    with pytest.raises(ValueError, match="mask is empty"):
        move_mask(np.zeros((4, 4), bool), np.random.default_rng(0))
