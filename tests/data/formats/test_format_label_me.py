"""LabelMe: shapes, groups, files."""

import base64
import json

import numpy as np
import pytest
from on_disk import blob, by_pycocotools, decoded, pairs, png, polygon, records, write_image

SIZE = (48, 64)


def label_me(root, shapes, name="a", **more):
    shapes = more.pop("instead", shapes)
    write_image(root / f"{name}.png", SIZE)
    entry = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
    (root / f"{name}.json").write_text(json.dumps({**entry, "imageHeight": 48, "imageWidth": 64, **more}))
    return root / f"{name}.json"


def labelled(label, points, kind="polygon", **more):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def test_labelme_shapes_and_groups(tmp_path, prepare):
    part = blob(seed=2)[10:40, 5:50]
    label_me(
        tmp_path,
        [
            labelled("dog", pairs(polygon(1)), group_id=1, description="the left dog"),
            labelled("cup", [[3, 4], [20, 30]], "rectangle"),
            labelled("dog", pairs(polygon(2)), group_id=1),
            labelled("coin", [[30, 20], [30, 28]], "circle"),
            labelled("leaf", [[5, 10], [49, 39]], "mask", mask=base64.b64encode(png(part)).decode()),
        ],
    )
    rows, _, _ = prepare("labelme", tmp_path, "--task", "masks", "--task", "segment", "--task", "name_region")
    masks = [decoded(row["masks"][0]) for row in rows if row["source"]["task"] == "masks"]
    np.testing.assert_array_equal(masks[0], by_pycocotools([polygon(1), polygon(2)], SIZE))
    box = np.zeros(SIZE, bool)
    box[4:30, 3:20] = True
    np.testing.assert_array_equal(masks[1], box)
    assert abs(masks[2].sum() - np.pi * 64) < 10 and masks[2][20, 30] and not masks[2][20, 39]
    whole = np.zeros(SIZE, bool)
    whole[10:40, 5:50] = part
    np.testing.assert_array_equal(masks[3], whole)
    assert "the left dog" in next(r for r in rows if r["source"]["task"] == "segment")["messages"][0]["content"]
    names = [r["messages"][1]["content"] for r in rows if r["source"]["task"] == "name_region"]
    assert names == ["dog", "cup", "coin", "leaf"]


def test_labelme_rectangles_have_two_corners_or_all_four_in_any_order(tmp_path, prepare):
    corners = [[3, 4], [20, 4], [20, 30], [3, 30]]
    shapes = [corners, corners[1:] + corners[:1], corners[::-1], [[20, 30], [3, 4]], [[3, 30], [20, 4]]]
    label_me(tmp_path, [labelled("cup", points, "rectangle") for points in shapes])
    rows, summary, _ = prepare("labelme", tmp_path, "--task", "masks")
    expected = np.zeros(SIZE, bool)
    expected[4:30, 3:20] = True
    assert len(rows) == len(shapes) and not summary["skipped"]
    for row in rows:
        np.testing.assert_array_equal(decoded(row["masks"][0]), expected)


@pytest.mark.parametrize(
    ("reason", "shape", "more"),
    [
        ("mask cannot be read", labelled("x", [[1, 1], [2, 2]]), {}),
        ("mask cannot be read", labelled("x", [[1, 1], [2, 2], [3, "y"]]), {}),
        ("mask cannot be read", labelled("x", [[1, 1], [2, 2]], "linestrip"), {}),
        ("mask cannot be read", labelled("x", [[1, 1], [2, 2]], "mask", mask="no base64!"), {}),
        ("mask cannot be read", labelled("x", [[1, 1], [2, 2]], "mask", mask="AAAA"), {}),
        ("mask has no pixels", labelled("x", [[1, 1], [1, 1], [1, 1]]), {}),
        ("image has another size than its annotation", labelled("x", []), {"imageHeight": 5}),
        ("image is missing", labelled("x", []), {"imagePath": "c:\\photos\\other.png"}),
        ("entry lacks a field", labelled("x", []), {"instead": None}),
    ],
)
def test_labelme_bad_input_is_counted(tmp_path, prepare, reason, shape, more):
    label_me(tmp_path, [labelled("dog", pairs(polygon(1)))], "good")
    label_me(tmp_path, [shape], "bad", **more)
    rows, summary, _ = prepare("labelme", tmp_path, "--task", "masks")
    assert len(rows) == 1 and summary["skipped"] == {reason: 1}
    assert reason in prepare("labelme", tmp_path, "--task", "masks", "--strict", status=2)


@pytest.mark.parametrize("label", [None, "", "  "])
def test_a_labelme_shape_without_a_label_has_a_mask_and_no_class(tmp_path, prepare, label):
    label_me(tmp_path, [labelled("dog", pairs(polygon(1))), labelled(label, pairs(polygon(2)))])
    rows, summary, _ = prepare("labelme", tmp_path, "--task", "segment_class")
    assert {row["category"] for row in rows} == {"dog"} and summary["unused"] == {"mask has no class": 1}
    assert len(prepare("labelme", tmp_path, "--task", "masks")[0]) == 2


def test_labelme_files_that_are_truncated_or_not_utf8_are_counted(tmp_path, prepare):
    path = label_me(tmp_path, [labelled("dog", pairs(polygon(1)))])
    text = path.read_bytes()
    for data, reason in ((text[:-9], "is not JSON"), (text.replace(b"dog", b"d\xffg"), "text is not UTF-8")):
        path.write_bytes(data)
        assert f"(1 x {reason}, for example" in prepare("labelme", tmp_path, status=2)


def test_labelme_splits_are_folders_with_any_usual_name(tmp_path, prepare):
    for folder in ("train", "valid"):
        label_me(tmp_path / folder, [labelled("dog", pairs(polygon(1)))], folder)
    rows, _, _ = prepare("labelme", tmp_path, "--split", "val", "--task", "masks")
    assert [row["source"]["image_id"] for row in rows] == ["valid"]
    assert "found none of" in prepare("labelme", tmp_path, "--split", "test", status=2)


def test_a_labelme_class_with_a_shape_without_a_mask_is_incomplete_and_present(tmp_path):
    dog, cup = labelled("dog", pairs(polygon(1))), labelled("cup", pairs(polygon(2)))
    label_me(tmp_path, [dog, cup, labelled("dog", [[1, 1], [9, 9]], "line"), labelled("hat", [], "point")])
    (record,) = records("labelme", tmp_path)
    assert record.incomplete_classes == {"dog", "hat"} and record.present == {"dog", "cup", "hat"}
