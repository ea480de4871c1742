"""metrics.py against numbers worked out by hand, and boundary F against DAVIS's rule written with dilations."""

import math

import numpy as np
import pytest
from scipy import ndimage

from himtok_plugin.metrics import SegmentationMetrics, boundary_f, mask_iou


def row(text):
    return np.array([[c == "#" for c in text]])


EMPTY, FULL = row("...."), row("####")


def test_iou_by_hand():
    assert mask_iou(row("##.."), row(".##.")) == pytest.approx(1 / 3)
    assert mask_iou(EMPTY, EMPTY) == 1.0
    assert mask_iou(EMPTY, row("#...")) == 0.0
    assert mask_iou(row("##.."), row(".##."), ignore=row("#...")) == pytest.approx(1 / 2)


def test_all_numbers_by_hand():
    metrics = SegmentationMetrics()
    metrics.update(row("##.."), row(".##."))  # I 1, U 3, IoU 1/3
    metrics.update(row("####"), row("###."))  # I 3, U 4, IoU 3/4
    metrics.update(EMPTY, EMPTY)  # IoU 1, right about no target
    metrics.update(row("#..."), EMPTY)  # I 0, U 1, IoU 0, wrong about no target
    metrics.update(None, row("##.."))  # I 0, U 2, IoU 0, missing
    result = metrics.compute()
    assert result["cIoU"] == pytest.approx(4 / 10)
    assert result["gIoU"] == pytest.approx((1 / 3 + 3 / 4 + 1) / 5)
    assert [result[f"P@0.{n}"] for n in (5, 6, 7, 8, 9)] == [0.4, 0.4, 0.4, 0.2, 0.2]
    assert result["N-acc"] == 1 / 2 and result["T-acc"] == pytest.approx(2 / 3)
    assert result["samples"] == len(metrics) == 5 and result["missing"] == 1


def test_precision_counts_an_iou_on_the_level():
    metrics = SegmentationMetrics()
    metrics.update(row("#..."), row("##.."))
    assert metrics.compute()["P@0.5"] == 1.0


def test_shares_over_no_samples_are_none():
    result = SegmentationMetrics().compute()
    assert result["cIoU"] is None and result["gIoU"] is None and result["boundary_F"] is None
    metrics = SegmentationMetrics()
    metrics.update(FULL, FULL)
    assert metrics.compute()["N-acc"] is None


def test_a_missing_answer_is_an_empty_prediction_and_counted():
    metrics = SegmentationMetrics()
    metrics.update(None, EMPTY)
    result = metrics.compute()
    assert (result["cIoU"], result["gIoU"], result["N-acc"], result["T-acc"]) == (1.0, 1.0, 1.0, None)
    assert result["missing"] == 1


def test_ignored_pixels_count_nowhere():
    metrics = SegmentationMetrics()
    metrics.update(row("#..."), row(".#.."), ignore=row("##.."))
    result = metrics.compute()
    assert result["gIoU"] == 1.0 and result["N-acc"] == 1.0 and result["boundary_F"] == 1.0


@pytest.mark.parametrize(
    ("prediction", "target", "ignore"),
    [
        (row("##"), row("###"), None),
        (np.zeros((1, 4)), EMPTY, None),
        (EMPTY, EMPTY[0], None),
        (EMPTY, EMPTY, row("#")),
        (EMPTY, None, None),
        (EMPTY.T, EMPTY, None),
    ],
)
def test_bad_masks_are_refused_and_change_nothing(prediction, target, ignore):
    metrics = SegmentationMetrics()
    with pytest.raises(ValueError, match="expected"):
        metrics.update(prediction, target, ignore)
    assert len(metrics) == 0


@pytest.mark.parametrize("boundary", [True, False])
def test_merged_parts_give_what_one_accumulator_gives(boundary):
    rng = np.random.default_rng(0)
    whole, parts = SegmentationMetrics(boundary), [SegmentationMetrics(boundary) for _ in range(3)]
    for i in range(30):
        prediction, target = (ndimage.binary_opening(rng.random((24, 31)) < 0.8) for _ in range(2))
        whole.update(prediction, target & (i % 5 > 0))
        parts[i % 3].update(prediction, target & (i % 5 > 0))
    merged = SegmentationMetrics(boundary).merge(parts[0]).merge(parts[1]).merge(parts[2])
    assert merged.compute() == pytest.approx(whole.compute())
    assert ("boundary_F" in merged.compute()) == boundary


def test_merging_metrics_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="boundary"):
        SegmentationMetrics().merge(SegmentationMetrics(boundary=False))


def reference_boundary_f(prediction, target):
    def edge(mask):
        padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
        return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])

    radius = math.ceil(0.008 * math.hypot(*target.shape))
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x**2 + y**2 <= radius**2
    a, b = edge(prediction), edge(target)
    precision = (a & ndimage.binary_dilation(b, disk)).sum() / a.sum()
    recall = (b & ndimage.binary_dilation(a, disk)).sum() / b.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_boundary_f_is_that_of_davis(seed):
    rng = np.random.default_rng(seed)
    target = ndimage.gaussian_filter(rng.random((140, 200)), 8) > 0.5
    prediction = np.roll(target, rng.integers(0, 6, 2), (0, 1)) ^ (rng.random(target.shape) < 0.001)
    assert boundary_f(prediction, target) == pytest.approx(reference_boundary_f(prediction, target))


def test_boundary_f_of_masks_without_boundary():
    nothing, everything, square = np.zeros((9, 9), bool), np.ones((9, 9), bool), np.zeros((9, 9), bool)
    square[3:6, 3:6] = True
    assert boundary_f(nothing, nothing) == boundary_f(everything, everything) == boundary_f(square, square) == 1.0
    assert boundary_f(nothing, everything) == boundary_f(square, nothing) == boundary_f(nothing, square) == 0.0


def test_boundary_f_forgives_a_shift_within_the_tolerance_only():
    target = np.zeros((60, 80), dtype=bool)  # diagonal 100, tolerance 1
    target[20:40, 20:50] = True
    assert boundary_f(np.roll(target, 1, 1), target) == 1.0
    assert boundary_f(np.roll(target, 3, 1), target) < 0.9
