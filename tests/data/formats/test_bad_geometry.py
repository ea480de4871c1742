"""A polygon or shape that cannot be drawn is left out of its object and reported; the object keeps its other parts."""

import numpy as np
import pytest
from on_disk import coco_file, write_image, write_json
from PIL import Image

from himtok_plugin.masks import load_mask
from himtok_plugin.masks.polygons import polygons_to_mask

SIZE = (40, 60)
GOOD = [10, 10, 40, 10, 40, 30, 10, 30]
PART = "part of an object cannot be drawn; its other parts are kept"
ALONE = "mask cannot be read"
STRAY = {
    "two points": [3, 3, 8, 8],
    "one point": [3, 3],
    "nothing": [],
    "an odd number": [3, 3, 8, 8, 9, 9, 1],
    "not finite": [3, 3, float("nan"), 8, 9, 9],
    "infinite": [3, 3, float("inf"), 8, 9, 9],
    "401 digits": [3, 3, 10**400, 8, 9, 9],
    "far away": [3, 3, 1e308, 8, 9, 9],
    "outside": [-30, -30, -8, -30, -8, -9],
    "text": ["3", 3, 8, 8, 9, 9],
    "bools": [True, 3, 8, 8, 9, 9],
}


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    for name in ("a.jpg", "b.jpg"):
        write_image(root / name, SIZE)
    return root


def coco_layout(*annotations):
    """One image with annotations of one class."""
    image = {"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    return coco_file([image], [{"id": i, **common, **each} for i, each in enumerate(annotations, 1)])


def assert_kept_and_listed(rows, entries):
    """One object lost its stray part, another one had nothing else."""
    expected = polygons_to_mask([GOOD], SIZE)
    assert rows and all(np.array_equal(load_mask(mask), expected) for row in rows for mask in row["masks"])
    assert sorted(entry["reason"] for entry in entries) == sorted([PART, ALONE])
    assert all(entry["detail"] for entry in entries)


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("first", [True, False])
def test_coco(images, prepare, stray, first):
    parts = [STRAY[stray], GOOD] if first else [GOOD, STRAY[stray]]
    write_json(images / "a.json", coco_layout({"segmentation": parts}, {"segmentation": [STRAY[stray]]}))
    rows, _, entries = prepare("coco-json", images, "--task", "segment_instances", "--task", "masks")
    assert_kept_and_listed(rows, [e for e in entries if e["reason"] in (PART, ALONE)])
    assert PART in prepare("coco-json", images, "--strict", status=2)


@pytest.mark.parametrize("stray", STRAY)
def test_sa1b(images, prepare, stray):
    annotations = [{"id": i, "segmentation": [*good, STRAY[stray]]} for i, good in enumerate(([GOOD], []), 1)]
    image = {"image_id": 1, "width": SIZE[1], "height": SIZE[0], "file_name": "a.jpg"}
    write_json(images / "a.json", {"image": image, "annotations": annotations})
    rows, _, entries = prepare("sa1b", images, "--task", "masks")
    assert_kept_and_listed(rows, entries)


def pairs(flat):
    return [flat[i : i + 2] for i in range(0, len(flat), 2)]


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("with_circle", [False, True])
def test_labelme(images, prepare, stray, with_circle):
    def shape(points, group, kind="polygon"):
        return {"label": "cup", "points": points, "group_id": group, "shape_type": kind}

    good = [shape([GOOD[:2], GOOD[4:6]], 1, "rectangle")]
    if with_circle:  # of one group, drawn by pixels: inside the rectangle
        good.append(shape([[20, 20], [22, 20]], 1, "circle"))
    shapes = [*good, shape(pairs(STRAY[stray]), 1), shape(pairs(STRAY[stray]), 2)]
    size = {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    write_json(images / "a.json", {"version": "5", "shapes": shapes, "imagePath": "a.jpg", "imageData": None, **size})
    rows, _, entries = prepare("labelme", images, "--task", "masks")
    assert_kept_and_listed(rows, [e for e in entries if e["reason"] in (PART, ALONE)])


def as_text(flat):
    return ";".join(",".join(str(v) if not isinstance(v, str) else f"x{v}" for v in point) for point in pairs(flat))


@pytest.mark.parametrize("stray", STRAY)
@pytest.mark.parametrize("with_ellipse", [False, True])
def test_cvat(images, prepare, stray, with_ellipse):
    shapes = f'<polygon label="cup" group_id="1" points="{as_text(GOOD)}"/>'
    if with_ellipse:
        shapes += '<ellipse label="cup" group_id="1" cx="20" cy="20" rx="3" ry="2"/>'
    for group in (1, 2):
        shapes += f'<polygon label="cup" group_id="{group}" points="{as_text(STRAY[stray])}"/>'
    image = f'<image id="0" name="a.jpg" width="{SIZE[1]}" height="{SIZE[0]}">{shapes}</image>'
    (images / "annotations.xml").write_text(f"<annotations>{image}</annotations>")
    rows, _, entries = prepare("cvat", images, "--task", "masks")
    assert_kept_and_listed(rows, [e for e in entries if e["reason"] in (PART, ALONE)])


def test_reasonseg(images, prepare):
    shapes = [{"label": "target", "points": pairs(GOOD)}]
    shapes += [{"label": "target", "points": pairs(STRAY[stray])} for stray in ("not finite", "401 digits", "text")]
    (images / "train").mkdir()
    for name, own in (("a", shapes), ("b", shapes[1:])):
        write_image(images / "train" / f"{name}.jpg", SIZE)
        write_json(images / "train" / f"{name}.json", {"text": ["a cup"], "is_sentence": False, "shapes": own})
    rows, _, entries = prepare("reasonseg", images, "--split", "train", "--task", "segment")
    assert len(rows) == 1 and load_mask(rows[0]["masks"][0]).sum() >= 600
    assert [entry["reason"] for entry in entries].count(PART) == 3
    assert [entry for entry in entries if "b.json" in entry["detail"]]


@pytest.mark.parametrize("orientation", [3, 6])
def test_label_maps_with_an_orientation_are_turned_as_their_images_are(tmp_path, prepare, orientation):
    upright = np.zeros((40, 60), np.uint8)
    upright[10:30, 10:40] = 1
    turn = Image.Transpose.ROTATE_180 if orientation == 3 else Image.Transpose.ROTATE_90
    stored = Image.fromarray(upright).transpose(turn)
    exif = Image.Exif()
    exif[274] = orientation
    write_image(tmp_path / "images/a.jpg", stored.size[::-1], orientation=orientation)
    (tmp_path / "masks").mkdir()
    stored.save(tmp_path / "masks/a.png", exif=exif)
    rows, _, _ = prepare("png", tmp_path, "--task", "masks")
    assert np.array_equal(load_mask(rows[0]["masks"][0]), upright > 0)


@pytest.mark.parametrize("box", [[1, 1, 10**400, 5], [1, 1, float("nan"), 5], [True, 1, 9, 9], ["1", 1, 9, 9], 7, [[]]])
def test_a_bad_box_is_listed(images, prepare, box):
    write_json(images / "a.json", coco_layout({"segmentation": [GOOD]}, {"segmentation": [GOOD], "bbox": box}))
    rows, _, entries = prepare("coco-json", images, "--task", "box_to_mask")
    assert len(rows) == 1
    assert "box is not x1 < x2, y1 < y2 within its image" in [entry["reason"] for entry in entries]
