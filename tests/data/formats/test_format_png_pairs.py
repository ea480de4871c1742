"""PNG pairs: masks beside images, classes, expressions."""

import json

import numpy as np
import pytest
from on_disk import blob, decoded, png, records, write_image

SIZE = (48, 64)


def test_png_pairs_by_name_class_and_expression(tmp_path, prepare):
    for name in ("a", "a_1", "b"):
        write_image(tmp_path / "images" / f"{name}.jpg", SIZE)
    masks = {"a": blob(seed=1), "a_1_left": blob(seed=2), "dogs/b": blob(seed=3), "b-2": blob(seed=4)}
    for name, mask in masks.items():
        path = tmp_path / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(mask))
    (tmp_path / "expressions.json").write_text('{"a_1_left": ["the left cup", "a cup"], "b-2.png": "a hat"}')
    rows, summary, _ = prepare("png", tmp_path, "--task", "masks", "--task", "segment")
    found = {row["source"]["id"]: row for row in rows if row["source"]["task"] == "masks"}
    assert {id: row["source"]["image_id"] for id, row in found.items()} == {
        "a": "a",
        "a_1_left": "a_1",
        "b": "b",
        "b-2": "b",
    }
    for name, mask in masks.items():
        np.testing.assert_array_equal(decoded(found[name.split("/")[-1]]["masks"][0]), mask)
    asked = [row["messages"][0]["content"] for row in rows if row["source"]["task"] == "segment"]
    assert len(asked) == 3 and "a hat" in asked[2] and not summary["skipped"]
    named, _, _ = prepare("png", tmp_path, "--task", "segment_class", "--category", "cup")
    assert sorted(row["source"]["id"] for row in named) == ["cup", "cup", "cup", "dogs"]


@pytest.mark.parametrize(
    ("reason", "name", "data"),
    [
        ("mask cannot be read", "b.png", b"no png"),
        ("mask cannot be read", "b.png", png(np.ones((9, 9), bool))),
        ("mask has no pixels", "b.png", png(np.zeros(SIZE, bool))),
        ("id is not in the file", "zebra.png", png(blob())),
    ],
)
def test_png_pairs_bad_input_is_counted(tmp_path, prepare, reason, name, data):
    for image in ("a", "b"):
        write_image(tmp_path / "images" / f"{image}.jpg", SIZE)
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(png(blob()))
    (tmp_path / "masks" / name).write_bytes(data)
    rows, summary, _ = prepare("png", tmp_path, "--task", "masks")
    assert len(rows) == 1 and summary["skipped"] == {reason: 1}
    assert reason in prepare("png", tmp_path, "--task", "masks", "--strict", status=2)


def png_pairs(root, images, masks):
    """Write images and masks; the i-th mask is `blob(seed=i)`."""
    for name in images:
        write_image(root / "images" / name, SIZE)
    for seed, name in enumerate(masks):
        path = root / "masks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(blob(seed=seed)))


def test_png_pairs_may_differ_in_case(tmp_path, prepare):
    png_pairs(tmp_path, ["DSC_1.JPG", "a.jpg", "A.jpg"], ["dsc_1.PNG", "Dsc_1_2.png", "A.png", "a.png"])
    rows, summary, _ = prepare("png", tmp_path, "--task", "masks")
    masks = [decoded(mask) for row in rows for mask in row["masks"]]
    assert len(masks) == 4 and summary["skipped"] == summary["unused"] == {}
    by_image = {row["source"]["image_id"]: [decoded(m).tolist() for m in row["masks"]] for row in rows}
    assert by_image["A"] == [blob(seed=2).tolist()] and by_image["a"] == [blob(seed=3).tolist()]


def test_png_pairs_in_folders_belong_to_the_image_in_the_same_folder(tmp_path, prepare):
    images = ["a.jpg", "day1/a.jpg", "day2/a.jpg", "day2/b_1.jpg", "day2/only.jpg"]
    masks = ["a.png", "day1/a.png", "day2/a_2.png", "day1/cups/a.png", "cups/day2/a.png", "dogs/a.png", "only_3.png"]
    png_pairs(tmp_path, images, masks)
    rows, summary, _ = prepare("png", tmp_path, "--task", "masks")
    of_image = {}
    for row in rows:
        of_image.setdefault(row["source"]["image_id"], []).append(decoded(row["masks"][0]))
    expected = {"a": ("a.png", "dogs/a.png"), "day1/a": ("day1/a.png", "day1/cups/a.png"),
                "day2/a": ("cups/day2/a.png", "day2/a_2.png"), "day2/only": ("only_3.png",)}  # fmt: skip
    assert {image: len(found) for image, found in of_image.items()} == {k: len(v) for k, v in expected.items()}
    for image, names in expected.items():
        for mask, name in zip(of_image[image], names, strict=True):
            np.testing.assert_array_equal(mask, blob(seed=masks.index(name)), name)
    assert not summary["skipped"]


def test_ambiguous_png_pairs_are_counted_and_their_class_is_incomplete(tmp_path, prepare):
    png_pairs(tmp_path, ["day1/a.jpg", "day2/a.jpg", "day2/b.jpg", "c.jpg", "c.png"], ["cups/a.png", "c.png"])
    error, entries = prepare("png", tmp_path, "--task", "masks", status=2, skipped=True)
    assert "2 x name fits several files" in error
    assert any("day1/a.jpg, day2/a.jpg" in entry["detail"] for entry in entries)
    assert "name fits several files" in prepare("png", tmp_path, "--strict", status=2)
    found = {record.image_id: record.incomplete_classes for record in records("png", tmp_path)}
    assert found == {"day1/a": {"cups"}, "day2/a": {"cups"}, "day2/b": set(), "c": set()}


def test_expressions_for_a_name_in_two_folders_need_the_folder(tmp_path, prepare):
    png_pairs(tmp_path, ["day1/a.jpg", "day2/a.jpg", "img.1.jpg"], ["day1/a.png", "day2/a.png", "img.1.png"])
    path = tmp_path / "expressions.json"
    path.write_text('{"a": "a cup", "day2/a": "a hat", "img.1": "a shoe", "zebra": "a zebra"}')
    rows, summary, _ = prepare("png", tmp_path)
    asked = {row["source"]["image_id"]: row["messages"][0]["content"] for row in rows}
    assert set(asked) == {"day2/a", "img.1"} and "a hat" in asked["day2/a"] and "a shoe" in asked["img.1"]
    assert summary["skipped"] == {"name fits several files": 1, "id is not in the file": 1}


@pytest.mark.parametrize("names", [("x/a", "y/a"), ("x\\a.png", "Y/A.PNG"), ("X/a.PNG", "y\\A")])
def test_expressions_name_masks_in_any_case_and_with_either_slash(tmp_path, prepare, names):
    png_pairs(tmp_path, ["a.jpg"], ["x/a.png", "y/a.png"])
    (tmp_path / "expressions.json").write_text(json.dumps(dict(zip(names, (["left"], ["right"]), strict=True))))
    rows, summary, _ = prepare("png", tmp_path)
    assert len(rows) == 2 and summary["tasks"] == {"segment": 2} and summary["skipped"] == {}
    for seed, row in enumerate(rows):
        np.testing.assert_array_equal(decoded(row["masks"][0]), blob(seed=seed))
        assert ("left", "right")[seed] in row["messages"][0]["content"]


def test_png_splits_are_folders_with_any_usual_name(tmp_path, prepare):
    for folder in ("train", "valid"):
        write_image(tmp_path / "images" / folder / f"{folder}.jpg", SIZE)
        (tmp_path / "masks" / folder).mkdir(parents=True)
        (tmp_path / "masks" / folder / f"{folder}.png").write_bytes(png(blob()))
    rows, _, _ = prepare("png", tmp_path, "--split", "val", "--task", "masks")
    assert [row["source"]["image_id"] for row in rows] == ["valid"]
    assert "found none of" in prepare("png", tmp_path, "--split", "test", status=2)
