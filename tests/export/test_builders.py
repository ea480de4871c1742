"""Annotations in memory: COCO and LabelMe, with holes, parts and scores."""

import json

import numpy as np
import pytest
from hard_masks import SIZE, iou, pixel, ring, two_parts
from pycocotools import mask as coco

from himtok_plugin.export.annotations import ExportImage, ExportObject
from himtok_plugin.export.coco import build_coco
from himtok_plugin.export.label_me import build_label_me
from himtok_plugin.export.outlines import LEAST_IOU, join_polygons, outline_mask, simplify_polygon
from himtok_plugin.masks.polygons import polygons_to_mask


def make_image():
    objects = [
        ExportObject(ring(), "Käse", 0.91234567, "das Stück Käse"),
        ExportObject(np.zeros(SIZE, bool), "nothing", 0.5),
        ExportObject(two_parts(), "shoe"),
    ]
    return ExportImage("fotos/a b.jpg", SIZE, objects)


def test_coco_has_exact_masks_scores_and_no_empty_objects():
    content = json.loads(json.dumps(build_coco([make_image()])))
    assert content["images"] == [{"id": 1, "file_name": "fotos/a b.jpg", "height": 60, "width": 80}]
    assert [entry["name"] for entry in content["categories"]] == ["Käse", "shoe"]
    first, second = content["annotations"]
    assert np.array_equal(coco.decode(first["segmentation"]), ring())
    assert np.array_equal(coco.decode(second["segmentation"]), two_parts())
    assert (first["score"], first["expression"], first["area"]) == (0.912346, "das Stück Käse", ring().sum())
    assert "score" not in second and second["category_id"] == 2


@pytest.mark.parametrize("mask", [ring(), two_parts(), pixel(), np.ones(SIZE, bool)])
def test_outlines_keep_masks_within_their_tolerance_and_exactly_without_one(mask):
    simple, exact = outline_mask(mask, 1), outline_mask(mask, 0)
    assert np.array_equal(polygons_to_mask(exact, SIZE), mask)
    assert iou(polygons_to_mask(simple, SIZE), mask) >= LEAST_IOU
    assert sum(map(len, simple)) <= sum(map(len, exact))
    assert iou(polygons_to_mask([join_polygons(exact)], SIZE), mask) == 1


def test_a_slanted_border_needs_few_points():
    stairs = [0.0, 0.0, *(number for i in range(50) for number in (i + 1, i, i + 1, i + 1)), 0, 50]
    assert len(simplify_polygon(stairs, 1)) <= 10


def test_label_me_groups_the_parts_of_an_object_and_keeps_masks():
    content = build_label_me(make_image())
    shapes = content["shapes"]
    assert {shape["label"]: shape["group_id"] for shape in shapes} == {"Käse": 1, "shoe": 2}
    assert (content["imageHeight"], content["imageWidth"], content["imagePath"]) == (60, 80, "fotos/a b.jpg")
    assert shapes[0]["score"] == 0.912346 and shapes[0]["description"] == "das Stück Käse"
    masks = build_label_me(make_image(), shapes="masks")["shapes"]
    assert [shape["shape_type"] for shape in masks] == ["mask", "mask"]
    assert masks[0]["points"] == [[8, 8], [52, 52]]


def test_a_mask_of_another_size_than_its_image_is_refused():
    with pytest.raises(ValueError, match=r"objects\[0\]\.mask: got bool \(60, 80\), expected bool \(80, 60\)"):
        ExportImage("a.jpg", (80, 60), [ExportObject(ring())])
