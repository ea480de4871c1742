"""boxes.py: boxes as base models write them, IoU by hand, accuracy at levels."""

import numpy as np
import pytest

from himtok_plugin.metrics.boxes import BoxMetrics, box_iou, boxes_in_text

SIZE = (500, 1000)  # h, w


@pytest.mark.parametrize(
    ("text", "scale", "boxes"),
    [
        ("It is at [[100, 200, 300, 400]].", "norm1000", [(100, 100, 300, 200)]),
        ("<|box_start|>(100,200),(300,400)<|box_end|>", "norm1000", [(100, 100, 300, 200)]),
        ("[0.1, 0.2, 0.3, 0.4]", "norm1", [(100, 100, 300, 200)]),
        ('{"bbox_2d": [1, 2, 3.5, 4]}', "pixel", [(1, 2, 3.5, 4)]),
        ("[1,2,3,4] and (5,6,7,8)", "pixel", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[1, 2, 3] or 4, 5, 6, 7", "pixel", []),
        ("There is none.", "pixel", []),
        ("[-5, 0, 3, 4]", "pixel", [(-5, 0, 3, 4)]),
    ],
)
def test_boxes_are_found_in_answers(text, scale, boxes):
    assert boxes_in_text(text, SIZE, scale) == [pytest.approx(box) for box in boxes]


def test_pixels_of_the_image_that_the_model_was_shown_are_brought_back():
    (box,) = boxes_in_text("[10, 20, 30, 40]", SIZE, "pixel", shown=(50, 200))
    assert box == pytest.approx((50, 200, 150, 400))
    assert boxes_in_text("[10, 20, 30, 40]", SIZE, "norm1000", shown=(50, 200)) == [pytest.approx((10, 10, 30, 20))]


def test_another_scale_is_refused():
    with pytest.raises(ValueError, match="scale: got 'percent', expected one of norm1, norm1000, pixel"):
        boxes_in_text("[1, 2, 3, 4]", SIZE, "percent")


def test_iou_by_hand():
    assert box_iou((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert box_iou((0, 0, 2, 2), (0, 0, 2, 2)) == 1.0
    assert box_iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0.0  # they touch
    assert box_iou((2, 2, 0, 0), (0, 0, 2, 2)) == 0.0  # corners in the wrong order have no area
    assert box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0.0


def test_iou_is_that_of_pycocotools():
    from pycocotools import mask as coco

    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 100, (20, 2, 2))
    boxes = [(*pair.min(0), *pair.max(0)) for pair in boxes]
    widths = [np.array([[x1, y1, x2 - x1, y2 - y1]]) for x1, y1, x2, y2 in boxes]
    for a, x in zip(boxes, widths, strict=True):
        for b, y in zip(boxes, widths, strict=True):
            assert box_iou(a, b) == pytest.approx(float(coco.iou(x, y, [0])[0, 0]), abs=1e-9)


def test_accuracy_at_levels_counts_missing_answers_as_wrong_and_merges():
    target = (0, 0, 10, 10)
    whole, parts = BoxMetrics(), [BoxMetrics(), BoxMetrics()]
    for i, prediction in enumerate([(0, 0, 10, 10), (0, 0, 10, 8), (0, 0, 10, 5), None]):
        whole.update(prediction, target)
        parts[i % 2].update(prediction, target)
    result = whole.compute()
    assert (result["box_acc@0.5"], result["box_acc@0.7"], result["box_acc@0.9"]) == (3 / 4, 2 / 4, 1 / 4)
    assert result["box_IoU"] == pytest.approx((1 + 0.8 + 0.5) / 4)
    assert (result["samples"], result["missing"], len(whole)) == (4, 1, 4)
    assert parts[0].merge(parts[1]).compute() == pytest.approx(result)
    assert BoxMetrics().compute()["box_acc@0.5"] is None
