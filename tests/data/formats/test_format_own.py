"""The user's own data: LabelMe, YOLO-seg, CVAT and PNG pairs."""

import base64
import io
import json

import numpy as np
import pytest
import yaml
from on_disk import blob, by_pycocotools, decoded, polygon, records, write_image
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
        ("mask cannot be read", "0.5 0.1 0.1 0.9 0.1 0.9 0.9"),
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


def test_yolo_labels_without_an_image_are_counted_but_not_the_list_of_classes(tmp_path, prepare):
    yolo(tmp_path, [f"1 {normalised(polygon(1))}"])
    (tmp_path / "labels" / "train" / "classes.txt").write_text("dog\ncup\n")
    assert prepare("yolo", tmp_path, "--task", "masks")[1]["skipped"] == {}
    (tmp_path / "images" / "train" / "a.jpg").unlink()
    error, entries = prepare("yolo", tmp_path, "--task", "masks", status=2, skipped=True)
    assert "1 x image is missing" in error and entries[0]["detail"].endswith("a.txt")


def test_yolo_without_names_or_images_is_refused(tmp_path, prepare):
    yolo(tmp_path, [])
    assert "--split" in prepare("yolo", tmp_path, "--split", "test", status=2)
    (tmp_path / "data.yaml").write_text("train: images")
    assert "names is None" in prepare("yolo", tmp_path, status=2)
    (tmp_path / "data.yaml").write_text("train: images\nnames: {first: cup}")
    assert "names is {'first': 'cup'}: expected a list of classes" in prepare("yolo", tmp_path, status=2)


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


# ----- splits


@pytest.mark.parametrize("names", [("x/a", "y/a"), ("x\\a.png", "Y/A.PNG"), ("X/a.PNG", "y\\A")])
def test_expressions_name_masks_in_any_case_and_with_either_slash(tmp_path, prepare, names):
    png_pairs(tmp_path, ["a.jpg"], ["x/a.png", "y/a.png"])
    (tmp_path / "expressions.json").write_text(json.dumps(dict(zip(names, (["left"], ["right"]), strict=True))))
    rows, summary, _ = prepare("png", tmp_path)
    assert len(rows) == 2 and summary["tasks"] == {"segment": 2} and summary["skipped"] == {}
    for seed, row in enumerate(rows):
        np.testing.assert_array_equal(decoded(row["masks"][0]), blob(seed=seed))
        assert ("left", "right")[seed] in row["messages"][0]["content"]


def test_splits_of_own_data_are_folders_with_any_usual_name(tmp_path, prepare):
    for folder in ("train", "valid"):
        label_me(tmp_path / "labelme" / folder, [labelled("dog", pairs(polygon(1)))], folder)
        write_image(tmp_path / "png" / "images" / folder / f"{folder}.jpg", SIZE)
        (tmp_path / "png" / "masks" / folder).mkdir(parents=True)
        (tmp_path / "png" / "masks" / folder / f"{folder}.png").write_bytes(png(blob()))
    for name in ("labelme", "png"):
        root = tmp_path / name
        assert [row["source"]["image_id"] for row in prepare(name, root, "--split", "val", "--task", "masks")[0]] == [
            "valid"
        ]
        assert "found none of" in prepare(name, root, "--split", "test", status=2)


def test_yolo_reads_lists_and_several_folders(tmp_path, prepare):
    for folder in ("one", "two", "three"):
        write_image(tmp_path / "images" / folder / f"{folder}.jpg", SIZE)
        (tmp_path / "labels" / folder).mkdir(parents=True)
        (tmp_path / "labels" / folder / f"{folder}.txt").write_text(f"0 {normalised(polygon(1))}")
    settings = {
        "path": "/nowhere",
        "train": "lists/train.txt",
        "val": ["images/two", "images/three"],
        "test": ["images/one", "lists/train.txt"],
        "names": ["dog"],
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "lists").mkdir()
    absolute = tmp_path / "images" / "two" / "two.jpg"
    (tmp_path / "lists" / "train.txt").write_text(f"./../images/one/one.jpg\n{absolute}\n\nimages/gone.jpg\n")
    found = {}
    for split in ("train", "val", "test"):
        rows, summary, entries = prepare("yolo", tmp_path, "--split", split, "--task", "masks")
        found[split] = [row["source"]["image_id"] for row in rows], summary["skipped"]
    assert found["train"] == (["one", "two"], {"image is missing": 1})
    assert found["val"] == (["two", "three"], {})
    assert found["test"] == (["one", "one", "two"], {"image is missing": 1})
    for broken in ({"train": "lists/no.txt"}, {"train": ["images/one", "images/no"]}, {"train": 5}):
        (tmp_path / "images" / "train").mkdir(exist_ok=True)  # is no answer to another list
        (tmp_path / "data.yaml").write_text(yaml.safe_dump({**settings, **broken}))
        assert "train" in prepare("yolo", tmp_path, "--split", "train", status=2)


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


# ----- incomplete classes


def test_a_class_with_a_shape_without_a_mask_is_incomplete_and_present(tmp_path):
    dog, cup = labelled("dog", pairs(polygon(1))), labelled("cup", pairs(polygon(2)))
    label_me(tmp_path / "labelme", [dog, cup, labelled("dog", [[1, 1], [9, 9]], "line"), labelled("hat", [], "point")])
    (record,) = records("labelme", tmp_path / "labelme")
    assert record.incomplete_classes == {"dog", "hat"} and record.present == {"dog", "cup", "hat"}

    box, broken = "0 0.5 0.5 0.25 0.5", "2 0.1 0.1 0.9"
    yolo(tmp_path / "yolo", [f"0 {normalised(polygon(1))}", f"1 {normalised(polygon(2))}", box, broken],
         names=["dog", "cup", "hat"])  # fmt: skip
    record = next(record for record in records("yolo", tmp_path / "yolo") if record.image_id == "a")
    assert record.incomplete_classes == {"dog", "hat"} and record.present == {"dog", "cup", "hat"}
    assert record.absent is None
    yolo(tmp_path / "yolo", [f"0 {normalised(polygon(1))}", "x 0.1 0.1 0.9 0.9 0.8 0.7"])
    record = next(record for record in records("yolo", tmp_path / "yolo") if record.image_id == "a")
    assert record.incomplete_classes == {"dog", "cup"} and record.present == {"dog"} and record.absent == frozenset()

    shapes = f'<polygon label="dog" points="{points(polygon(1))}"/><polygon label="cup" points="{points(polygon(2))}"/>'
    cvat(tmp_path / "cvat", shapes + '<box label="dog" xtl="1" ytl="2" xbr="30" ybr="40"/><points label="hat"/>')
    record = next(records("cvat", tmp_path / "cvat"))
    assert record.incomplete_classes == {"dog", "hat"} and record.present == {"dog", "cup", "hat"}
