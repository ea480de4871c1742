"""YOLO-seg: lines, lists of images, class names."""

import numpy as np
import pytest
import yaml
from on_disk import by_pycocotools, decoded, polygon, records, write_image

SIZE = (48, 64)


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


def test_a_yolo_class_with_a_line_without_a_mask_is_incomplete_and_present(tmp_path):
    box, broken = "0 0.5 0.5 0.25 0.5", "2 0.1 0.1 0.9"
    yolo(tmp_path, [f"0 {normalised(polygon(1))}", f"1 {normalised(polygon(2))}", box, broken],
         names=["dog", "cup", "hat"])  # fmt: skip
    record = next(record for record in records("yolo", tmp_path) if record.image_id == "a")
    assert record.incomplete_classes == {"dog", "hat"} and record.present == {"dog", "cup", "hat"}
    assert record.absent is None
    yolo(tmp_path, [f"0 {normalised(polygon(1))}", "x 0.1 0.1 0.9 0.9 0.8 0.7"])
    record = next(record for record in records("yolo", tmp_path) if record.image_id == "a")
    assert record.incomplete_classes == {"dog", "cup"} and record.present == {"dog"} and record.absent == frozenset()
