"""run_lengths.py, compared with pixels and with pycocotools."""

import time

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from himtok_plugin.masks import to_rle
from himtok_plugin.masks.run_lengths import Runs

SIZE = (13, 17)


def random_mask(rng, share=0.5, size=SIZE):
    return ndimage.median_filter(rng.random(size) < share, 3)


def masks():
    rng = np.random.default_rng(0)
    yield from (random_mask(rng, share) for share in (0.3, 0.5, 0.7) for _ in range(10))
    yield np.zeros(SIZE, bool)
    yield np.ones(SIZE, bool)
    for pixel in (0, -1):  # the very first and the very last
        mask = np.zeros(SIZE, bool)
        mask.T.flat[pixel] = True
        yield np.array(mask)
        yield ~mask


def pixels(runs):
    flat = np.zeros(runs.size[0] * runs.size[1], bool)
    for begin, end in runs.bounds.reshape(-1, 2):
        assert begin < end
        flat[begin:end] = True
    return flat.reshape(runs.size[1], runs.size[0]).T


def test_runs_hold_the_pixels_of_arrays_and_encodings():
    for mask in masks():
        for runs in (Runs.from_mask(mask), Runs.from_rle(to_rle(mask))):
            assert np.array_equal(pixels(runs), mask) and runs.area == mask.sum()
            assert (np.diff(runs.bounds) > 0).all()


def test_runs_of_no_pixel_in_an_encoding_are_passed_over():
    runs = Runs.from_rle({"counts": [0, 5, 0, 3, 2, 0, 4, 1], "size": [3, 5]})
    assert runs.bounds.tolist() == [0, 8, 14, 15]


def test_overlaps_and_sets_are_those_of_the_pixels():
    all_masks = list(masks())
    for a in all_masks:
        for b in all_masks[::3]:
            x, y = Runs.from_mask(a), Runs.from_mask(b)
            assert x.overlap(y) == (a & b).sum()
            assert np.array_equal(pixels(x.and_(y)), a & b)
            assert np.array_equal(pixels(x.without(y)), a & ~b)
            assert np.array_equal(pixels(Runs.union([x, y], SIZE)), a | b)
    three = [all_masks[i] for i in (0, 11, 21)]
    union = Runs.union([Runs.from_mask(mask) for mask in three], SIZE)
    assert np.array_equal(pixels(union), np.logical_or.reduce(three))
    assert Runs.union([], SIZE).area == 0


def test_iou_is_that_of_pycocotools():
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = to_rle(random_mask(rng)), to_rle(random_mask(rng))
        x, y = Runs.from_rle(a), Runs.from_rle(b)
        overlap = x.overlap(y)
        expected = float(coco.iou([a], [b], [0])[0, 0])
        assert overlap / (x.area + y.area - overlap) == pytest.approx(expected)
        assert x.area == coco.area(a)


@pytest.mark.parametrize("sigma", [0, 1, 5])
def test_overlap_is_exactly_that_of_pycocotools_on_masks_of_many_runs(sigma):
    rng = np.random.default_rng(sigma)
    noise = [ndimage.gaussian_filter(rng.random((120, 160)), sigma) for _ in range(4)]
    encoded = [to_rle(each > np.quantile(each, share)) for each in noise for share in (0.1, 0.5, 0.9)]
    for a in encoded:
        for b in encoded:
            expected = int(coco.area(coco.merge([a, b], intersect=True)))
            assert Runs.from_rle(a).overlap(Runs.from_rle(b)) == expected


def test_masks_of_another_size_are_refused():
    a, b = Runs.empty((4, 5)), Runs.empty((5, 4))
    for operation in (a.overlap, a.and_, a.without):
        with pytest.raises(ValueError, match=r"size \(h, w\) = \(5, 4\): expected \(4, 5\)"):
            operation(b)
    with pytest.raises(ValueError, match="expected"):
        Runs.union([a], (5, 4))


def test_two_thousand_pairs_of_480_x_640_take_a_second():
    """A quarter of that here: the machine may be busy, and these masks have more runs than most."""
    rng = np.random.default_rng(2)
    noise = [ndimage.zoom(rng.random((12, 16)), 40, order=1) > 0.6 for _ in range(8)]
    encoded = [to_rle(mask) for mask in noise]
    begin, pairs = time.perf_counter(), 0
    for a in encoded:
        for b in encoded:
            Runs.from_rle(a).overlap(Runs.from_rle(b))
            pairs += 1
    assert pairs / (time.perf_counter() - begin) > 500
