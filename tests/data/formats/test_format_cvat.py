"""CVAT for images: shapes and subsets; its videos are in test_cvat_tracks.py."""

import numpy as np
import pytest
from on_disk import blob, by_pycocotools, decoded, pairs, polygon, records, write_image

SIZE = (48, 64)


def cvat(root, shapes, head=""):
    write_image(root / "images" / "a.png", SIZE)
    write_image(root / "images" / "sub" / "b.png", SIZE)
    (root / "annotations.xml").write_text(
        f'<?xml version="1.0" encoding="utf-8"?>{head}<annotations><version>1.1</version><meta><task/></meta>'
        f'<image id="0" name="a.png" width="64" height="48">{shapes}</image>'
        '<image id="1" name="sub/b.png" width="64" height="48"/></annotations>',
        encoding="utf-8",
    )


def points(flat):
    return ";".join(f"{x},{y}" for x, y in pairs(flat))


def test_cvat_shapes(tmp_path, prepare):
    part = blob(seed=3)[8:42, 6:52]
    flat = part.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    runs = ([0] if flat[0] else []) + runs
    cvat(
        tmp_path,
        f'<polygon label="größe" points="{points(polygon(1))}">'
        '<attribute name="expression">the left one</attribute></polygon>'
        f'<polygon label="dog" group_id="2" points="{points(polygon(2))}"/>'
        f'<polygon label="dog" group_id="2" points="{points(polygon(3))}"/>'
        f'<mask label="leaf" rle="{", ".join(map(str, runs))}" left="6" top="8" width="46" height="34"/>'
        '<ellipse label="coin" cx="30" cy="20" rx="10" ry="5" rotation="90"/>'
        '<box label="cup" xtl="1" ytl="2" xbr="30" ybr="40"/>',
    )
    rows, summary, _ = prepare("cvat", tmp_path, "--task", "masks", "--task", "segment", "--task", "ground")
    assert summary["images"] == 2 and not summary["skipped"]
    masks = [decoded(row["masks"][0]) for row in rows if row["source"]["task"] == "masks"]
    np.testing.assert_array_equal(masks[0], by_pycocotools([polygon(1)], SIZE))
    np.testing.assert_array_equal(masks[1], by_pycocotools([polygon(2), polygon(3)], SIZE))
    whole = np.zeros(SIZE, bool)
    whole[8:42, 6:52] = part
    np.testing.assert_array_equal(masks[2], whole)
    assert abs(masks[3].sum() - np.pi * 50) < 8 and masks[3][28, 30] and not masks[3][20, 37]
    assert len(masks) == 4
    assert "the left one" in next(r for r in rows if r["source"]["task"] == "segment")["messages"][0]["content"]


def test_cvat_boxes_enclose_the_rotated_rectangle(tmp_path):
    numbers = 'xtl="10" ytl="10" xbr="30" ybr="20"'
    turned = [f'<box label="cup" {numbers} rotation="{angle}"/>' for angle in ("0.0", "90", "30", "330.0", "180")]
    cvat(tmp_path, "".join(turned))
    boxes = [region.box for region in next(records("cvat", tmp_path)).regions]
    corners = np.array([[-10, -5], [10, -5], [10, 5], [-10, 5]])
    for box, angle in zip(boxes, (0, 90, 30, 330, 180), strict=True):
        a = np.deg2rad(angle)
        spun = corners @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]) + (20, 15)
        np.testing.assert_allclose(box, [*spun.min(axis=0), *spun.max(axis=0)])


@pytest.mark.parametrize(
    ("reason", "shape"),
    [
        ("mask cannot be read", '<polygon label="x" points="1,2;3"/>'),
        ("mask cannot be read", '<ellipse label="x" cx="30" cy="20" rx="10" ry="5" rotation="much"/>'),
        (
            "part of an object cannot be drawn; its other parts are kept",
            '<box label="x" group_id="1"/><polygon label="x" group_id="1" points="1,1;9,1;9,9"/>',
        ),
        (
            "box is not x1 < x2, y1 < y2 within its image",
            '<box label="x" xtl="1" ytl="2" xbr="30" ybr="40" rotation="much"/>',
        ),
        ("mask cannot be read", '<polyline label="x" points="1,2;3,4"/>'),
        ("mask cannot be read", '<mask label="x" rle="5, 5" left="0" top="0" width="9" height="9"/>'),
        ("mask cannot be read", '<mask label="x" rle="5" left="0" top="0" width="9"/>'),
        ("mask has no pixels", '<polygon label="x" points="1,1;1,1;1,1"/>'),
    ],
)
def test_cvat_bad_shapes_are_counted(tmp_path, prepare, reason, shape):
    cvat(tmp_path, shape + f'<polygon label="dog" points="{points(polygon(1))}"/>')
    rows, summary, _ = prepare("cvat", tmp_path, "--task", "masks")
    # Of a group, the good shapes stay.
    assert len(rows) == (2 if "group_id" in shape else 1) and summary["skipped"] == {reason: 1}
    assert reason in prepare("cvat", tmp_path, "--task", "masks", "--strict", status=2)


def test_cvat_files_that_are_truncated_or_have_entities_are_refused(tmp_path, prepare):
    cvat(tmp_path, "", '<!DOCTYPE a [<!ENTITY x "y">]>')
    assert "has a document type" in prepare("cvat", tmp_path, status=2)
    cvat(tmp_path, "")
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text()[:-20])
    assert "is not XML" in prepare("cvat", tmp_path, status=2)


def cvat_subsets(root, *images, meta="", file="annotations.xml"):
    """Images of (name, subset), each a polygon; `meta` is the subset of its task."""
    text = f"<annotations><meta><task><subset>{meta}</subset></task></meta>"
    for id, (name, subset) in enumerate(images):
        write_image(root / "images" / name, SIZE)
        own = f'subset="{subset}"' if subset else ""
        text += f'<image id="{id}" name="{name}" {own} width="64" height="48">'
        text += f'<polygon label="dog" points="{points(polygon(1))}"/></image>'
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "</annotations>")


def test_cvat_splits_are_subsets(tmp_path, prepare):
    def ids(root, *arguments):
        return [row["source"]["image_id"] for row in prepare("cvat", root, "--task", "masks", *arguments)[0]]

    of_images = tmp_path / "images' own"
    cvat_subsets(of_images, ("a.png", "Train"), ("b.png", "Validation"), ("c.png", "Train"), ("d.png", "default"))
    assert ids(of_images) == ["0", "1", "2", "3"]
    assert ids(of_images, "--split", "train") == ["0", "2"] and ids(of_images, "--split", "val") == ["1"]
    error = prepare("cvat", of_images, "--split", "test", status=2)
    assert "expected all or one of Train, Validation" in error
    of_task = tmp_path / "the task's"
    cvat_subsets(of_task, ("a.png", ""), ("b.png", ""), meta="Test")
    assert ids(of_task, "--split", "test") == ["0", "1"]
    assert "one of Test" in prepare("cvat", of_task, "--split", "train", status=2)
    none = tmp_path / "none"
    cvat_subsets(none, ("a.png", "default"), ("b.png", ""))
    assert "expected all or a file" in prepare("cvat", none, "--split", "train", status=2)
    assert ids(none, "--split", "train", "--annotations", none / "annotations.xml") == ["0", "1"]
    files = tmp_path / "files"
    cvat_subsets(files, ("a.png", ""), file="train.xml")
    cvat_subsets(files, ("b.png", ""), ("c.png", ""), file="val.xml")
    assert ids(files, "--split", "train") == ["0"] and ids(files, "--split", "val") == ["0", "1"]
    assert ids(files) == ["0", "0", "1"]  # all is both of them


def test_cvat_images_of_one_name_in_two_subsets(tmp_path, prepare):
    cvat_subsets(tmp_path, ("a.png", "Train"), ("a.png", "Test"))
    (tmp_path / "images" / "a.png").unlink()
    for subset in ("Train", "Test"):
        write_image(tmp_path / "images" / subset / "a.png", SIZE)
    rows, _, _ = prepare("cvat", tmp_path, "--task", "box_to_mask")
    assert [row["images"] for row in rows] == [[str(tmp_path / "images" / s / "a.png")] for s in ("Train", "Test")]


def test_a_cvat_class_with_a_shape_without_a_mask_is_incomplete_and_present(tmp_path):
    shapes = f'<polygon label="dog" points="{points(polygon(1))}"/><polygon label="cup" points="{points(polygon(2))}"/>'
    cvat(tmp_path, shapes + '<box label="dog" xtl="1" ytl="2" xbr="30" ybr="40"/><points label="hat"/>')
    record = next(records("cvat", tmp_path))
    assert record.incomplete_classes == {"dog", "hat"} and record.present == {"dog", "cup", "hat"}
