"""Answers as arrays, boxes, pictures and COCO annotations; made from masks or from a row of a result file."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from himtok_plugin import SegmentationResult
from himtok_plugin.masks import to_rle
from himtok_plugin.prediction.predictor import PredictedMask

H, W = 6, 8


def rectangle(top, bottom, left, right):
    mask = np.zeros((H, W), bool)
    mask[top:bottom, left:right] = True
    return mask


def result(**fields):
    masks = [
        PredictedMask(rectangle(1, 3, 2, 7), [4, 2], 0.75, True, 0, 10),
        PredictedMask(rectangle(4, 6, 0, 1), [1], None, False, 12, 20),
    ]
    return SegmentationResult.from_masks("two of them", masks, (H, W), **fields)


def test_masks_boxes_and_scores_are_arrays_in_order():
    found = result()
    assert len(found) == 2 and found.masks.shape == (2, H, W) and found.masks.dtype == bool
    assert found.boxes.tolist() == [[2, 1, 7, 3], [0, 4, 1, 6]]
    assert found.scores[0] == 0.75 and np.isnan(found.scores[1])
    assert found.complete.tolist() == [True, False] and found.codes == [[4, 2], [1]]


def test_answer_without_a_mask_has_empty_arrays_of_the_images_size():
    empty = SegmentationResult.from_masks("There is none.", [], (H, W), Image.new("RGB", (W, H)))
    assert empty.masks.shape == (0, H, W) and empty.boxes.shape == (0, 4) and empty.scores.shape == (0,)
    assert empty.to_coco() == [] and len(empty) == 0 and empty.size == (H, W)
    assert np.array_equal(np.asarray(empty.overlay()), np.zeros((H, W, 3)))


def test_coco_annotations_hold_what_pycocotools_computes():
    first, second = result().to_coco(image_id=7, category_id=3, first_id=10)
    json.dumps([first, second])
    assert (first["id"], second["id"]) == (10, 11) and first["image_id"] == 7 and first["category_id"] == 3
    assert first["area"] == coco.area(first["segmentation"]) == 10
    assert first["bbox"] == coco.toBbox(first["segmentation"]).tolist() == [2, 1, 5, 2]
    assert first["score"] == 0.75 and "score" not in second and first["iscrowd"] == 0


def test_overlay_tints_the_masks_and_leaves_the_rest():
    image = Image.new("RGB", (W, H), (10, 20, 30))
    shown = np.asarray(result(image=image).overlay())
    inside = result().masks.any(axis=0)
    assert (shown[~inside] == (10, 20, 30)).all() and (shown[inside] != (10, 20, 30)).any(axis=1).all()


def test_overlay_without_an_image_is_rejected():
    with pytest.raises(ValueError, match="image is None"):
        result().overlay()


def test_boxes_written_as_numbers_are_pixels_of_the_image():
    text = "It is at [(250,500),(500,1000)], the other at [0, 0, 125, 500]. [1, 2] is none, <|mt_1|> neither."
    found = SegmentationResult.from_masks(text, [], (H, W))
    assert found.text_boxes.tolist() == [[2, 3, 4, 6], [0, 0, 1, 3]]
    assert SegmentationResult.from_masks("none", [], (H, W)).text_boxes.shape == (0, 4)
    with pytest.raises(ValueError, match="box_side is None"):
        _ = SegmentationResult.from_masks(text, [], (H, W), box_side=None).text_boxes


def test_a_result_read_from_a_file_equals_the_one_written():
    masks = [{**to_rle(rectangle(1, 3, 2, 7)), "codes": [4, 2], "score": 0.75, "complete": True}]
    masks.append({**to_rle(rectangle(4, 6, 0, 1)), "codes": [1], "score": None, "complete": False})
    read = SegmentationResult.from_row({"response": "two of them", "masks": masks, "messages": [{"role": "user"}]})
    expected = result()
    for name in ("masks", "boxes", "scores", "complete"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
    assert (read.text, read.codes, read.messages) == ("two of them", expected.codes, [{"role": "user"}])


def test_row_without_masks_needs_a_size():
    row = {"response": "none", "masks": []}
    assert SegmentationResult.from_row(row, (H, W)).size == (H, W)
    assert SegmentationResult.from_row(row, image=Image.new("L", (W, H))).size == (H, W)
    with pytest.raises(ValueError, match="size is None"):
        SegmentationResult.from_row(row)


def test_a_dataset_row_is_rejected():
    with pytest.raises(ValueError, match="masks is .*expected a list of RLE"):
        SegmentationResult.from_row({"masks": ["masks/0.png"]})
