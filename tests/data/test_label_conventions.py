"""labelme's labels `__ignore__` and `_background_` are no classes, in whatever format they end up."""

import json

import numpy as np
import pytest
from on_disk import by_pycocotools, decoded
from PIL import Image
from tiny_datasets import POLYGONS, SIZE, THING, labels, write

IGNORE, BACKGROUND = "__ignore__", "_background_"
NO_CLASS = "label is no class (__ignore__, _background_)"
OTHER = [30.0, 2.0, 55.0, 2.0, 55.0, 12.0]


def add_labelme(root, label):
    path = root / "0.json"
    content = json.loads(path.read_text())
    shape = {"label": label, "points": np.reshape(OTHER, (-1, 2)).tolist(), "description": "the rest"}
    content["shapes"].append(shape)
    path.write_text(json.dumps(content))


def add_coco(root, label):
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    content["categories"].append({"id": 0, "name": label})
    content["annotations"].append({"id": 9, "image_id": 1, "category_id": 0, "segmentation": [OTHER], "iscrowd": 0})
    path.write_text(json.dumps(content))


def add_yolo(root, label):
    (root / "data.yaml").write_text(f"train: images/train\nnames: [{THING}, {label}]\n")
    points = (np.reshape(OTHER, (-1, 2)) / SIZE[::-1]).ravel()
    with open(root / "labels" / "train" / "0.txt", "a") as file:
        file.write("1 " + " ".join(f"{value:.6f}" for value in points) + "\n")


def add_cvat(root, label):
    path = root / "annotations.xml"
    points = ";".join(f"{x},{y}" for x, y in np.reshape(OTHER, (-1, 2)))
    path.write_text(path.read_text().replace("</image>", f'<polygon label="{label}" points="{points}"/></image>', 1))


def add_png(root, label):
    (root / "expressions.json").unlink()
    for name in ("0.png", "1.png"):
        (root / "masks" / THING).mkdir(exist_ok=True)
        (root / "masks" / name).rename(root / "masks" / THING / name)
    (root / "masks" / label).mkdir()
    Image.fromarray(by_pycocotools([OTHER], SIZE).astype(np.uint8) * 255).save(root / "masks" / label / "0.png")


ADD = {"labelme": add_labelme, "coco-json": add_coco, "yolo": add_yolo, "cvat": add_cvat, "png": add_png}


@pytest.mark.parametrize("label", [IGNORE, BACKGROUND])
@pytest.mark.parametrize("name", ADD)
def test_the_labels_are_asked_about_by_no_task_and_counted(name, label, prepare, tmp_path):
    root = write(name, tmp_path / "data").root
    ADD[name](root, label)
    tasks = [argument for task in ("segment_class", "label_objects", "masks") for argument in ("--task", task)]
    rows, summary, _ = prepare(name, root, *tasks)
    assert label not in json.dumps([row.get("messages") for row in rows])
    assert summary["unused"] == {NO_CLASS: 1} and summary["skipped"] == {}
    of_image = [row for row in rows if row.get("category") == THING and "ignore" in row]
    if label == IGNORE:
        (row,) = of_image
        np.testing.assert_array_equal(decoded(row["ignore"][0]), by_pycocotools([OTHER], SIZE))
    else:
        assert not of_image


def test_they_are_no_negatives_for_other_images(prepare, tmp_path):
    root = write("labelme", tmp_path / "data").root
    add_labelme(root, BACKGROUND)
    error = prepare("labelme", root, "--task", "negative", status=2)
    assert "no expression of another image fits" in error


def test_expressions_of_such_shapes_are_dropped_with_them(prepare, tmp_path):
    root = write("labelme", tmp_path / "data").root
    add_labelme(root, IGNORE)
    assert "expected expressions" in prepare("labelme", root, "--task", "segment", status=2)


def test_ignored_shapes_join_the_unlabelled_pixels_of_label_maps(prepare, tmp_path):
    root = write("png", tmp_path / "data").root
    (root / "expressions.json").unlink()
    values = labels(0, 1, 3, 255)
    for name in ("0.png", "1.png"):
        Image.fromarray(values).save(root / "masks" / name)
    rows, summary, _ = prepare("png", root, "--classes", f"{BACKGROUND}=0,road=1,{IGNORE}=3")
    assert len(rows) == 2 and summary["unused"] == {NO_CLASS: 4}
    np.testing.assert_array_equal(decoded(rows[0]["ignore"][0]), (values == 3) | (values == 255))


def test_polygons_of_the_other_shapes_are_unchanged(prepare, tmp_path):
    root = write("labelme", tmp_path / "data").root
    add_labelme(root, BACKGROUND)
    rows = prepare("labelme", root, "--task", "segment_class")[0]
    np.testing.assert_array_equal(decoded(rows[0]["masks"][0]), by_pycocotools([POLYGONS[0]], SIZE))
