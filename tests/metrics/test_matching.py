"""Predicted masks are matched with true masks by the largest sum of IoU."""

from tiny_results import column_mask

from himtok_plugin.metrics.matching import matched_ious


def test_masks_are_matched_whatever_their_order_and_surplus_masks_have_no_iou():
    left, right = column_mask(0), column_mask(2, 3)
    assert matched_ious([right, left, column_mask(1)], [left, right]) == [1, 1, 0]
    assert matched_ious([left], []) == [0] and matched_ious([], [left]) == []


def test_of_two_masks_of_one_object_only_one_is_right():
    left = column_mask(0)
    assert sorted(matched_ious([left, left], [left])) == [0, 1]
