"""segmentation.py and boundary.py against numbers worked out by hand, pycocotools and scikit-learn.

Boundary metrics are compared with their definitions written with dilations and erosions.
"""

import math

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from himtok_plugin.masks import to_rle
from himtok_plugin.metrics.segmentation import (
    ClassMetrics,
    Overlap,
    SegmentationMetrics,
    boundary_f,
    boundary_iou,
    mask_iou,
)


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


def test_boundary_iou_forgives_no_shift_of_a_thin_rim():
    target = np.zeros((60, 80), dtype=bool)  # diagonal 100, rim of 2 pixels
    target[20:40, 20:50] = True
    rim = 20 * 30 - 16 * 26
    assert boundary_iou(target, target) == 1.0
    assert boundary_iou(~target, target) == 0.0  # rims on both sides of one line
    larger = np.zeros_like(target)
    larger[18:42, 18:52] = True  # its rim ends where that of the target begins
    assert boundary_iou(larger, target) == 0.0
    moved = np.roll(target, 1, 1)
    both = 2 * 2 * 29 + 2 * 16 * 1  # rows above and below; one column of either side
    assert boundary_iou(moved, target) == pytest.approx(both / (2 * rim - both))


def test_boundary_iou_of_empty_masks_and_with_pixels_ignored():
    nothing, everything = np.zeros((9, 9), bool), np.ones((9, 9), bool)
    assert boundary_iou(nothing, nothing) == boundary_iou(everything, everything) == 1.0
    assert boundary_iou(nothing, everything) == 0.0
    assert boundary_iou(everything, nothing, ignore=everything) == 1.0


@pytest.mark.parametrize("seed", range(6))
def test_boundary_iou_is_that_of_repeated_erosion(seed):
    rng = np.random.default_rng(seed)
    target = ndimage.gaussian_filter(rng.random((140, 200)), 8) > 0.5
    prediction = np.roll(target, rng.integers(0, 6, 2), (0, 1)) ^ (rng.random(target.shape) < 0.001)
    width = round(0.02 * math.hypot(*target.shape))
    a, b = (mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=width) for mask in (prediction, target))
    assert boundary_iou(prediction, target) == pytest.approx((a & b).sum() / (a | b).sum())


def random_pairs(count, size=(40, 50), seed=0):
    rng = np.random.default_rng(seed)
    for i in range(count):
        target = ndimage.gaussian_filter(rng.random(size), 4) > 0.5 + 0.05 * (i % 3)
        yield np.roll(target, i % 7, 1) if i % 5 else np.zeros(size, bool), target if i % 4 else np.zeros(size, bool)


def test_iou_numbers_are_those_of_pycocotools():
    pairs = list(random_pairs(40))
    metrics = SegmentationMetrics(boundary=False)
    for prediction, target in pairs:
        metrics.update(prediction, target)
    both = [(prediction, target) for prediction, target in pairs if (prediction | target).any()]
    encoded = [(to_rle(prediction), to_rle(target)) for prediction, target in both]
    ious = [float(coco.iou([a], [b], [0])[0, 0]) for a, b in encoded]
    union = sum(int(coco.area(coco.merge([a, b]))) for a, b in encoded)
    intersection = sum(int(coco.area(coco.merge([a, b], intersect=True))) for a, b in encoded)
    result = metrics.compute()
    assert result["cIoU"] == pytest.approx(intersection / union)
    assert result["gIoU"] == pytest.approx((sum(ious) + len(pairs) - len(both)) / len(pairs))
    right = sum(iou >= 0.7 for iou in ious) + len(pairs) - len(both)
    assert result["P@0.7"] == pytest.approx(right / len(pairs))


def test_iou_and_class_iou_are_those_of_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    maps = [(rng.integers(0, 4, (20, 30)), rng.integers(0, 4, (20, 30))) for _ in range(5)]
    classes = ClassMetrics()
    for predicted, true in maps:
        for label in range(4):
            a, b = predicted == label, true == label
            assert mask_iou(a, b) == pytest.approx(sklearn_metrics.jaccard_score(b.ravel(), a.ravel()))
            classes.update(f"class {label}", Overlap.of(a, b))
    flat = [np.concatenate([m[i].ravel() for m in maps]) for i in (1, 0)]
    expected = sklearn_metrics.jaccard_score(*flat, average=None)
    assert list(classes.per_class().values()) == pytest.approx(expected)
    assert classes.compute() == {"mIoU": pytest.approx(expected.mean()), "classes": 4}


def test_no_target_numbers_are_recalls_of_scikit_learn():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    pairs = list(random_pairs(60, seed=1))
    metrics = SegmentationMetrics(boundary=False)
    for prediction, target in pairs:
        metrics.update(prediction, target)
    has, answered = ([bool(mask.any()) for mask in side] for side in ([t for _, t in pairs], [p for p, _ in pairs]))
    result = metrics.compute()
    assert result["T-acc"] == pytest.approx(sklearn_metrics.recall_score(has, answered))
    assert result["N-acc"] == pytest.approx(sklearn_metrics.recall_score(has, answered, pos_label=False))


def test_classes_merge_and_one_that_is_nowhere_has_no_iou():
    first, second = ClassMetrics(), ClassMetrics()
    first.update("road", Overlap.of(row("##.."), row(".##.")))
    second.update("road", Overlap.of(row("####"), row("####")))
    second.update("sky", Overlap.of(EMPTY, EMPTY))
    merged = ClassMetrics().merge(first).merge(second)
    assert merged.per_class() == {"road": pytest.approx(5 / 7), "sky": None}
    assert merged.compute() == {"mIoU": pytest.approx(5 / 7), "classes": 1}
    assert first.per_class() == {"road": pytest.approx(1 / 3)}  # merging changes the left one only
    assert ClassMetrics().compute() == {"mIoU": None, "classes": 0}


def test_precision_over_targets_leaves_out_samples_without_one():
    metrics = SegmentationMetrics(boundary=False)
    for prediction, target in ((FULL, FULL), (row("#..."), FULL), (EMPTY, EMPTY)):
        metrics.update(prediction, target)
    assert metrics.compute()["P@0.5"] == pytest.approx(2 / 3)
    assert metrics.compute(precision_over_targets=True)["P@0.5"] == 1 / 2
    empty = SegmentationMetrics(boundary=False)
    empty.update(EMPTY, EMPTY)
    assert empty.compute(precision_over_targets=True)["P@0.5"] is None


def test_counts_give_what_pixels_give_but_no_boundary():
    counted, seen = SegmentationMetrics(boundary=False), SegmentationMetrics(boundary=False)
    for prediction, target in random_pairs(20):
        counted.update_overlap(Overlap.of(prediction, target))
        seen.update(prediction, target)
    assert counted.compute() == seen.compute()
    with pytest.raises(RuntimeError, match="boundary=True"):
        SegmentationMetrics().update_overlap(Overlap(1, 1, 1))
