"""The user's own data: LabelMe, YOLO-seg, CVAT and PNG pairs, each against another reading of its masks."""

import base64
import io
import json

import numpy as np
import pytest
import yaml
from on_disk import blob, by_pycocotools, decoded, polygon, write_image
from PIL import Image

SIZE = (48, 64)


def png(mask):
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, "PNG")
    return stream.getvalue()


def pairs(flat):
    return np.reshape(flat, (-1, 2)).tolist()


# ----- LabelMe


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


def test_labelme_truncated_and_not_utf8(tmp_path, prepare):
    path = label_me(tmp_path, [labelled("dog", pairs(polygon(1)))])
    text = path.read_bytes()
    for data, reason in ((text[:-9], "is not JSON"), (text.replace(b"dog", b"d\xffg"), "text is not UTF-8")):
        path.write_bytes(data)
        assert prepare("labelme", tmp_path)[1]["skipped"] == {reason: 1}


# ----- YOLO


def yolo(root, lines, split="train", layout="images/{split}", names=("dog", "cup")):
    images = root / layout.format(split=split)
    write_image(images / "a.jpg", SIZE)
    write_image(images / "background.jpg", SIZE)
    labels = root / layout.format(split=split).replace("images", "labels")
    labels.mkdir(parents=True, exist_ok=True)
    (labels / "a.txt").write_text("\n".join(lines))
    settings = {"path": "../datasets/mine", "train": layout.format(split="train"), "names": names}
    (root / "data.yaml").write_text(yaml.safe_dump(settings))


def normalised(flat):
    return " ".join(f"{v:.6f}" for v in (np.reshape(flat, (-1, 2)) / SIZE[::-1]).ravel())


@pytest.mark.parametrize(
    ("layout", "names"), [("images/{split}", ["dog", "cup"]), ("{split}/images", {0: "dog", 1: "cup"})]
)
def test_yolo_polygons(tmp_path, prepare, layout, names):
    yolo(
        tmp_path,
        [f"1 {normalised(polygon(1))}", f"0 {normalised(polygon(2))}", "0 0.5 0.5 0.25 0.5"],
        layout=layout,
        names=names,
    )
    rows, summary, _ = prepare("yolo", tmp_path, "--task", "masks", "--task", "name_region")
    assert summary["images"] == 2 and not summary["skipped"]
    masks = [decoded(row["masks"][0]) for row in rows if row["source"]["task"] == "masks"]
    for mask, seed in zip(masks, (1, 2), strict=True):
        rounded = [
            float(v) for v in (np.array(normalised(polygon(seed)).split(), float).reshape(-1, 2) * SIZE[::-1]).ravel()
        ]
        np.testing.assert_array_equal(mask, by_pycocotools([rounded], SIZE))
    assert [r["messages"][1]["content"] for r in rows if r["source"]["task"] == "name_region"] == ["cup", "dog"]


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        ("unknown category", "7 0.1 0.1 0.9 0.1 0.9 0.9"),
        ("mask cannot be read", "0 0.1 0.1 0.9 0.1 0.9 0.9 0.3"),
        ("mask cannot be read", "0 0.1 x 0.9 0.1 0.9 0.9"),
        ("mask cannot be read", "0 nan 0.1 0.9 0.1 0.9 0.9"),
        ("mask cannot be read", "0 100 200 900 100 900 800"),  # pixels
        ("mask has no pixels", "0 0.1 0.1 0.1 0.1 0.1 0.1"),
    ],
)
def test_yolo_bad_lines_are_counted(tmp_path, prepare, reason, line):
    yolo(tmp_path, [line, f"1 {normalised(polygon(1))}"])
    rows, summary, _ = prepare("yolo", tmp_path, "--task", "masks")
    assert len(rows) == 1 and summary["skipped"] == {reason: 1}
    assert reason in prepare("yolo", tmp_path, "--task", "masks", "--strict", status=2)


def test_yolo_labels_of_no_image_are_counted_and_a_list_of_classes_is_none(tmp_path, prepare):
    yolo(tmp_path, [f"1 {normalised(polygon(1))}"])
    (tmp_path / "labels" / "train" / "classes.txt").write_text("dog\ncup\n")
    assert prepare("yolo", tmp_path, "--task", "masks")[1]["skipped"] == {}
    (tmp_path / "images" / "train" / "a.jpg").unlink()
    rows, summary, entries = prepare("yolo", tmp_path, "--task", "masks")
    assert not rows and summary["skipped"] == {"image is missing": 1} and entries[0]["detail"].endswith("a.txt")


def test_yolo_without_names_or_images_is_refused(tmp_path, prepare):
    yolo(tmp_path, [])
    assert "--split" in prepare("yolo", tmp_path, "--split", "test", status=2)
    (tmp_path / "data.yaml").write_text("train: images")
    assert "names is None" in prepare("yolo", tmp_path, status=2)


# ----- CVAT


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


@pytest.mark.parametrize(
    ("reason", "shape"),
    [
        ("mask cannot be read", '<polygon label="x" points="1,2;3"/>'),
        ("mask cannot be read", '<polyline label="x" points="1,2;3,4"/>'),
        ("mask cannot be read", '<mask label="x" rle="5, 5" left="0" top="0" width="9" height="9"/>'),
        ("mask cannot be read", '<mask label="x" rle="5" left="0" top="0" width="9"/>'),
        ("mask has no pixels", '<polygon label="x" points="1,1;1,1;1,1"/>'),
    ],
)
def test_cvat_bad_shapes_are_counted(tmp_path, prepare, reason, shape):
    cvat(tmp_path, shape + f'<polygon label="dog" points="{points(polygon(1))}"/>')
    rows, summary, _ = prepare("cvat", tmp_path, "--task", "masks")
    assert len(rows) == 1 and summary["skipped"] == {reason: 1}
    assert reason in prepare("cvat", tmp_path, "--task", "masks", "--strict", status=2)


def test_cvat_that_is_cut_off_or_declares_entities_is_refused(tmp_path, prepare):
    cvat(tmp_path, "", '<!DOCTYPE a [<!ENTITY x "y">]>')
    assert "has a document type" in prepare("cvat", tmp_path, status=2)
    cvat(tmp_path, "")
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text()[:-20])
    assert "is not XML" in prepare("cvat", tmp_path, status=2)


# ----- PNG pairs


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
