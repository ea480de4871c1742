"""`himtok prepare`: no conversion without rows ends well, and every valid image and object in no row is counted."""

import json

import numpy as np
import pytest
from on_disk import coco_annotation, coco_file, polygon, write_image, write_json
from PIL import Image
from tiny_datasets import THING, write

from himtok_plugin.data.catalog import FORMATS
from himtok_plugin.data.tasks import TASKS

BOX_ONLY = "annotation is a box without a mask"
INCOMPLETE = "its class has an object without a mask in this image (a box, a bad mask, or not annotated)"
EMPTY = "image has no annotations"


def square(path, at=4, size=(48, 64)):
    mask = np.zeros(size, np.uint8)
    mask[at : at + 9, at : at + 12] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize("name", FORMATS)
def test_every_task_makes_rows_or_the_error_says_what_it_needs_and_which_tasks_fit(name, himtok, tmp_path):
    root = write(name, tmp_path / "data").root
    out = tmp_path / "rows.jsonl"
    served = []
    for task in ("segment", "segment_class", "box_to_mask", "ground", "converse"):
        status, _, error = himtok("prepare", name, "--root", root, out, "--task", task, "--num_workers", 0)
        if status == 0:
            served.append(task)
            assert out.read_bytes()
            out.unlink()
        else:
            assert status == 2 and error.count("\n") == 1 and not out.exists()
            assert f"{name}: got no rows of 2 images for --task {task} (" in error
            assert f"expected {TASKS[task].needs}" in error or "expected segmentation polygons" in error
    assert served or name == "sa1b"


@pytest.mark.parametrize("name", FORMATS)
def test_whole_datasets_have_nothing_unused(name, prepare, tmp_path):
    summary = prepare(name, write(name, tmp_path / "data").root)[1]
    assert summary["unused"] == {} and sum(summary["tasks"].values()) == summary["rows"]


def write_yolo(root, *lines):
    for i, text in enumerate(lines):
        write_image(root / "images" / "train" / f"{i}.jpg", seed=i)
        if text is not None:
            (root / "labels" / "train").mkdir(parents=True, exist_ok=True)
            (root / "labels" / "train" / f"{i}.txt").write_text(text)
    (root / "data.yaml").write_text("train: images/train\nnames: [cup, plate]\n")


def write_cvat(root, *shapes):
    content = ""
    for i, text in enumerate(shapes):
        write_image(root / "images" / f"{i}.jpg", seed=i)
        content += f'<image id="{i}" name="{i}.jpg" width="64" height="48">{text or ""}</image>'
    (root / "annotations.xml").write_text(f"<annotations>{content}</annotations>")


def write_coco(root, *annotations):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 48, "width": 64} for i in range(len(annotations))]
    for image in images:
        write_image(root / "images" / image["file_name"], seed=image["id"])
    entries = [entry for of_image in annotations for entry in of_image or ()]
    write_json(root / "annotations.json", coco_file(images, entries, ((1, "cup"), (2, "plate"))))


YOLO_BOX, YOLO_POLYGON = "0 0.5 0.5 0.2 0.2\n", "0 0.1 0.1 0.5 0.1 0.5 0.5\n"
CVAT_BOX = '<box label="cup" xtl="9" ytl="9" xbr="30" ybr="30"/>'
CVAT_POLYGON = '<polygon label="cup" points="3,3;40,3;40,30"/>'


def coco_box(id, image_id=0):
    return {"id": id, "image_id": image_id, "category_id": 1, "bbox": [9, 9, 20, 20], "area": 400, "iscrowd": 0}


BOXES = {
    "yolo": lambda root: write_yolo(root, YOLO_BOX, YOLO_BOX),
    "cvat": lambda root: write_cvat(root, CVAT_BOX, CVAT_BOX),
    "coco-json": lambda root: write_coco(root, [coco_box(1)], [coco_box(2, 1)]),
}
BOX_BESIDE_MASK = {
    "yolo": lambda root: write_yolo(root, YOLO_BOX + YOLO_POLYGON, YOLO_POLYGON),
    "cvat": lambda root: write_cvat(root, CVAT_BOX + CVAT_POLYGON, CVAT_POLYGON),
    "coco-json": lambda root: write_coco(
        root, [coco_box(1), coco_annotation(2, 0, [polygon(1)])], [coco_annotation(3, 1, [polygon(2)])]
    ),
}
ONE_EMPTY = {
    "yolo": lambda root: write_yolo(root, YOLO_POLYGON, None),
    "cvat": lambda root: write_cvat(root, CVAT_POLYGON, ""),
    "coco-json": lambda root: write_coco(root, [coco_annotation(3, 0, [polygon(2)])], []),
}


@pytest.mark.parametrize("name", BOXES)
def test_boxes_alone_are_an_error_that_names_what_is_missing(name, prepare, tmp_path):
    BOXES[name](tmp_path / "data")
    error, entries = prepare(name, tmp_path / "data", status=2, skipped=True)
    assert f"got no rows of 2 images for --task segment_class, segment_instances (2 x {BOX_ONLY}" in error
    assert "expected segmentation polygons or masks" in error and len(entries) == 2


@pytest.mark.parametrize("name", BOX_BESIDE_MASK)
def test_a_box_beside_a_mask_and_the_class_that_it_makes_incomplete_are_counted(name, prepare, himtok, tmp_path):
    BOX_BESIDE_MASK[name](tmp_path / "data")
    rows, summary, entries = prepare(name, tmp_path / "data")
    assert len(rows) == 2 and {row["source"]["image_id"] for row in rows} == {"1"}
    assert summary["skipped"] == {} and summary["unused"] == {BOX_ONLY: 1, INCOMPLETE: 1}
    assert {entry["reason"] for entry in entries} == {BOX_ONLY, INCOMPLETE}
    assert all("image 0, cup, region " in entry["detail"] for entry in entries)
    out = tmp_path / "printed.jsonl"
    _, _, error = himtok("prepare", name, "--root", tmp_path / "data", out, "--num_workers", 0)
    assert (
        f"unused 1: {BOX_ONLY}" in error and f"unused 1: {INCOMPLETE}" in error and f"see {out}.skipped.jsonl" in error
    )
    assert len(prepare(name, tmp_path / "data", "--strict")[0]) == 2  # a box is valid


@pytest.mark.parametrize("name", ONE_EMPTY)
def test_an_image_without_annotations_is_counted(name, prepare, tmp_path):
    ONE_EMPTY[name](tmp_path / "data")
    rows, summary, _ = prepare(name, tmp_path / "data")
    assert len(rows) == 2 and summary["unused"] == {EMPTY: 1}


def test_an_empty_labelme_file_and_a_picture_without_mask_are_counted(prepare, tmp_path):
    tiny = write("labelme", tmp_path / "data")
    (tmp_path / "data" / "0.json").write_text(json.dumps({"shapes": [], "imagePath": "0.png"}))
    assert prepare("labelme", tiny.root)[1]["unused"] == {EMPTY: 1}
    tiny = write("png", tmp_path / "pictures")
    (tmp_path / "pictures" / "masks" / "0.png").unlink()
    (tmp_path / "pictures" / "expressions.json").unlink()
    assert prepare("png", tiny.root, "--category", "cup")[1]["unused"] == {EMPTY: 1}


def test_a_task_without_rows_beside_one_with_rows_is_noted(prepare, tmp_path):
    root = write("coco", tmp_path / "data").root
    _, summary, _ = prepare("coco", root, "--task", "segment_class", "--task", "describe")
    assert summary["tasks"] == {"segment_class": 2, "describe": 0}
    assert summary["notes"] == ["--task describe made no row: it needs expressions of single objects with masks"]


def test_objects_of_a_row_that_was_skipped_are_counted(prepare, tmp_path):
    bad = coco_annotation(1, 0, [polygon(1)]) | {"segmentation": {"size": [48, 64], "counts": [1, 2]}}
    write_coco(tmp_path / "data", [bad, coco_annotation(2, 0, [polygon(2)])], [coco_annotation(3, 1, [polygon(3)])])
    _, summary, _ = prepare("coco-json", tmp_path / "data", "--task", "segment_class")
    assert summary["skipped"] == {"mask cannot be read": 1}
    assert summary["unused"] == {"its row was skipped for another reason": 1}


def test_shares_do_not_count_what_they_leave_out(prepare, tmp_path):
    write_coco(tmp_path / "data", *([coco_annotation(i, i, [polygon(i)])] for i in range(12)))
    rows, summary, _ = prepare("coco-json", tmp_path / "data", "--task", "segment_class=0.5")
    assert 0 < len(rows) < 12 and summary["unused"] == {} and summary["notes"] == []
    error = prepare("coco-json", tmp_path / "data", "--task", "segment_class=1e-9", status=2)
    assert "no sample was drawn), expected a larger share of the tasks" in error or "choose --task" in error


@pytest.mark.parametrize(
    ("made", "arguments", "tasks", "why"),
    [
        ((), (), ["masks"], "the masks have neither classes nor expressions"),
        ((), ("--category", "cup"), ["segment_class", "segment_instances"], "the masks have classes"),
        (("class",), (), ["segment_class", "segment_instances"], "the masks have classes"),
        (("expressions",), (), ["segment"], "expressions.json names masks"),
        ((), ("--classes", "cup=255"), ["segment_class"], "the masks are label maps of --classes"),
    ],
)
def test_png_chooses_a_task_that_it_can_serve_and_says_so(made, arguments, tasks, why, prepare, tmp_path):
    root = tmp_path / "data"
    write_image(root / "images" / "a.jpg")
    square(root / "masks" / ("cups" if "class" in made else ".") / "a.png")
    if "expressions" in made:
        write_json(root / "expressions.json", {"a": ["the left cup"]})
    rows, summary, _ = prepare("png", root, *arguments)
    assert list(summary["tasks"]) == tasks and len(rows) == len(tasks)
    (note,) = summary["notes"]
    assert note.startswith(f"png: without --task, {' and '.join(tasks)} ") and why in note


def test_the_list_of_losses_is_kept_when_there_are_no_rows_and_old_rows_stay(himtok, tmp_path):
    BOXES["yolo"](tmp_path / "data")
    out = tmp_path / "rows.jsonl"
    out.write_text('{"messages": []}\n')
    status, _, error = himtok("prepare", "yolo", "--root", tmp_path / "data", out, "--num_workers", 0)
    assert status == 2 and out.read_text() == '{"messages": []}\n' and f"see {out}.skipped.jsonl" in error
    assert (tmp_path / "rows.jsonl.skipped.jsonl").read_text().count(BOX_ONLY) == 2


def stray_labelme(root):
    path = root / "0.json"
    content = json.loads(path.read_text())
    content["shapes"].append({**content["shapes"][0], "points": [[3, 3], [8, 8]]})
    path.write_text(json.dumps(content))


def stray_cvat(root):
    text = (root / "annotations.xml").read_text()
    stray = f'<polygon label="{THING}" points="3,3;8,8"/></image>'
    (root / "annotations.xml").write_text(text.replace("</image>", stray, 1))


def stray_coco(root):
    content = json.loads((root / "annotations.json").read_text())
    content["annotations"].append({**content["annotations"][0], "id": 9, "segmentation": [[3, 3, 8, 8]]})
    (root / "annotations.json").write_text(json.dumps(content))


@pytest.mark.parametrize(("name", "add"), [("labelme", stray_labelme), ("cvat", stray_cvat), ("coco-json", stray_coco)])
def test_a_polygon_of_two_points_is_counted_and_is_no_object_of_its_class(name, add, prepare, tmp_path):
    root = write(name, tmp_path / "data").root
    tasks = [
        argument for task in ("segment_class", "segment_instances", "label_objects") for argument in ("--task", task)
    ]
    before = prepare(name, root, *tasks)[0]
    add(root)
    rows, summary, entries = prepare(name, root, *tasks)
    assert [row["masks"] for row in rows] == [row["masks"] for row in before]
    assert summary["skipped"] == {"mask cannot be read": 1} and summary["unused"] == {}
    assert "mask cannot be read" in prepare(name, root, "--strict", status=2)
