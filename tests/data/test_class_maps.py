"""`--classes`: names for pixel values, colours, class numbers and category ids, in every format without names."""

import json

import numpy as np
import pytest
from on_disk import decoded
from PIL import Image
from tiny_datasets import H, W, labels, write

from himtok_plugin.data.class_maps import read_class_map

ROAD, CAR = "road", "parked car"
EXPECTED = {1: ROAD, 2: CAR}


@pytest.mark.parametrize(
    "content",
    [
        {ROAD: 1, CAR: 2},
        {"1": ROAD, "2": CAR},
        {ROAD: "1", CAR: "2"},
        {"names": {"1": ROAD, "2": CAR}},
        {"categories": [{"id": 1, "name": ROAD}, {"id": 2, "name": CAR}]},
        [{"name": ROAD, "id": 1}, {"name": CAR, "id": 2}],
    ],
)
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_file_may_name_values_in_any_usual_form(tmp_path, content, suffix):
    path = tmp_path / f"classes.{suffix}"
    path.write_text(json.dumps(content))  # JSON is YAML
    assert read_class_map(str(path)) == EXPECTED


def test_lists_count_from_0_and_labelmes_lists_begin_with_the_ignored_label(tmp_path):
    path = tmp_path / "names.yaml"
    path.write_text(f"- sky\n- {ROAD}\n- {CAR}\n")
    assert read_class_map(str(path)) == {0: "sky", **EXPECTED}
    path = tmp_path / "labels.txt"
    path.write_text(f"__ignore__\n_background_\n{ROAD}\n{CAR}\n")
    assert read_class_map(str(path)) == {255: "__ignore__", 0: "_background_", **EXPECTED}


def test_text_files_have_names_or_values_and_names_or_cvats_colours(tmp_path):
    path = tmp_path / "labelmap.txt"
    path.write_text(f"1: {ROAD}\n2: {CAR}\n")
    assert read_class_map(str(path)) == EXPECTED
    path.write_text(f"1 {ROAD}\n2 {CAR}\n")
    assert read_class_map(str(path)) == EXPECTED
    path.write_text(f"# label:color_rgb:parts:actions\n{ROAD}:128,0,0::\n{CAR}:0,0,5::\n")
    assert read_class_map(str(path)) == {128 << 16: ROAD, 5: CAR}


@pytest.mark.parametrize("text", [f"{ROAD}=1,{CAR}=2", f"1={ROAD}, 2={CAR}", f" {ROAD} = 1 , {CAR} = 2 "])
def test_pairs_stand_on_the_command_line_in_either_order(text):
    assert read_class_map(text) == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road", "'road' is no pair, expected name=value pairs like road=1,car=2"),
        ("road=x", "has no value"),
        ("road=-1", "has no value"),
        ("=1", "1 has the name ''"),
        ("road=1,car=1", "1 is both 'road' and 'car', expected one name for each value"),
        ("road=1;car=2", "is more than one pair"),
        ("twice.json", "'road' is there twice"),
        ("no.json", "which cannot be read (No such file"),
        ("bad.json", "is not JSON"),
        ("bad.yaml", "is not YAML"),
        ("empty.json", "holds no classes"),
        ("number.json", "is 5, expected name=value pairs"),
    ],
)
def test_bad_maps_are_one_line_that_says_what_is_expected(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("bad.json", "{"), ("bad.yaml", "a: ["), ("empty.json", "{}"), ("number.json", "5")):
        (tmp_path / name).write_text(content)
    (tmp_path / "twice.json").write_text('{"road": 1, "road": 2}')
    with pytest.raises(ValueError, match=f"^--classes: got '{text}'") as error:
        read_class_map(text)
    assert message in str(error.value) and "\n" not in str(error.value)


def remove_names(name, root):
    """Remove a dataset's own class names, where it has any; `--classes` for it."""
    if name == "png":
        Image.fromarray(labels(0, 1, 2)).save(root / "masks" / "0.png")
        Image.fromarray(labels(2, 255, 1)).save(root / "masks" / "1.png")
        (root / "expressions.json").unlink()
    elif name == "ade20k":
        (root / "objectInfo150.txt").unlink()
    elif name == "yolo":
        (root / "data.yaml").write_text("train: images/train\n")
        return f"{ROAD}=0,{CAR}=1"
    elif name == "coco-json":
        content = json.loads((root / "annotations.json").read_text())
        for category in content["categories"]:
            del category["name"]
        (root / "annotations.json").write_text(json.dumps(content))
    return {"voc": f"{ROAD}=15", "pascal-context": f"{ROAD}=22,{CAR}=59", "cityscapes": f"{ROAD}=7,{CAR}=24"}.get(
        name, f"{ROAD}=1,{CAR}=2"
    )


@pytest.mark.parametrize(
    "name", ["png", "ade20k", "voc", "pascal-context", "cityscapes", "yolo", "coco-json", "coco", "coco-panoptic"]
)
def test_the_names_are_those_of_the_map_in_every_format(name, prepare, tmp_path):
    root = write(name, tmp_path / "data").root
    classes = remove_names(name, root)
    rows = prepare(name, root, "--classes", classes, "--task", "segment_class")[0]
    assert {row["category"] for row in rows} <= {ROAD, CAR} and ROAD in {row["category"] for row in rows}


def test_label_maps_have_a_mask_per_class_and_255_is_unlabelled(prepare, tmp_path):
    root = write("png", tmp_path / "data").root
    rows, summary, _ = prepare("png", root, "--classes", remove_names("png", root))
    assert summary["skipped"] == summary["unused"] == {}
    values = {"0": labels(0, 1, 2), "1": labels(2, 255, 1)}
    for row in rows:
        value = {ROAD: 1, CAR: 2}[row["category"]]
        expected = values[row["source"]["image_id"]]
        np.testing.assert_array_equal(decoded(row["masks"][0]), expected == value)
        if row["source"]["image_id"] == "1":
            np.testing.assert_array_equal(decoded(row["ignore"][0]), expected == 255)
    assert len(rows) == 4


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_label_maps_may_have_more_channels(mode, prepare, tmp_path):
    root = write("png", tmp_path / "data").root
    classes = remove_names("png", root)
    expected = [row["masks"] for row in prepare("png", root, "--classes", classes)[0]]
    for path in (root / "masks").iterdir():
        Image.open(path).convert(mode).save(path)
    assert [row["masks"] for row in prepare("png", root, "--classes", classes)[0]] == expected


def test_colours_are_labels_of_colour_images_and_palettes(prepare, tmp_path):
    root = write("png", tmp_path / "data").root
    remove_names("png", root)
    colours = np.zeros((H, W, 3), np.uint8)
    colours[:, :20], colours[:, 30:] = (128, 0, 0), (0, 64, 9)
    Image.fromarray(colours).save(root / "masks" / "0.png")
    palette = Image.fromarray(labels(0, 1, 2)).convert("P")
    palette.putpalette([0, 0, 0, 128, 0, 0, 0, 64, 9])
    palette.save(root / "masks" / "1.png")
    (tmp_path / "labelmap.txt").write_text(f"background:0,0,0::\n{ROAD}:128,0,0::\n{CAR}:0,64,9::\n")
    rows, summary, _ = prepare("png", root, "--classes", tmp_path / "labelmap.txt")
    found = {(row["source"]["image_id"], row["category"]): decoded(row["masks"][0]) for row in rows}
    np.testing.assert_array_equal(found["0", ROAD], colours[..., 0] == 128)
    np.testing.assert_array_equal(found["1", CAR], labels(0, 1, 2) == 2)
    assert summary["skipped"] == {}


def test_colours_without_a_map_of_colours_are_named(prepare, tmp_path):
    root = write("png", tmp_path / "data").root
    classes = remove_names("png", root)
    for path in (root / "masks").iterdir():
        Image.new("RGB", (W, H), (128, 0, 0)).save(path)
    assert "--classes with the colour of each class" in prepare("png", root, "--classes", classes, status=2)


def test_yolo_needs_no_yaml_if_the_classes_are_given(prepare, tmp_path):
    root = write("yolo", tmp_path / "data").root
    classes = remove_names("yolo", root)
    expected = prepare("yolo", root, "--classes", classes)[0]
    (root / "data.yaml").unlink()
    assert prepare("yolo", root, "--classes", classes)[0] == expected
    assert "found none of data.yaml" in prepare("yolo", root, status=2)


def test_a_label_map_without_names_is_an_error_that_names_the_option(prepare, tmp_path):
    root = write("png", tmp_path / "data").root
    remove_names("png", root)
    error = prepare("png", root, "--category", "road", status=2)
    assert "look like a map of several labels" in error and "from --classes, such as road=1,car=2" in error


def test_categories_without_names_are_noted(prepare, tmp_path):
    root = write("coco-json", tmp_path / "data").root
    remove_names("coco-json", root)
    (note,) = prepare("coco-json", root)[1]["notes"]
    assert "categories 1, 2 have no names" in note and "--classes" in note
    content = json.loads((root / "annotations.json").read_text())
    content["categories"][0]["name"], content["categories"][1]["name"] = None, CAR
    (root / "annotations.json").write_text(json.dumps(content))
    rows, summary, _ = prepare("coco-json", root, "--task", "segment_class")
    assert "category 1 has no name" in summary["notes"][0] and {row["category"] for row in rows} == {"1", CAR}


def test_a_file_without_categories_takes_them_from_the_map(prepare, tmp_path):
    root = write("coco-json", tmp_path / "data").root
    content = json.loads((root / "annotations.json").read_text())
    del content["categories"]
    (root / "annotations.json").write_text(json.dumps(content))
    assert "expected a file in COCO's layout, or --classes" in prepare("coco-json", root, status=2)
    rows = prepare("coco-json", root, "--classes", f"{ROAD}=1,{CAR}=2", "--task", "segment_class")[0]
    assert [row["category"] for row in rows] == [ROAD, CAR]


def test_formats_with_classes_of_their_own_refuse_the_options(prepare, tmp_path):
    root = write("labelme", tmp_path / "data").root
    assert "--classes: got one for labelme, which has no use for it" in prepare(
        "labelme", root, "--classes", "road=1", status=2
    )
    assert "--category: got one for labelme, which has no use for it, expected sa1b, png" in prepare(
        "labelme", root, "--category", "road", status=2
    )


@pytest.mark.parametrize("classes", ["{road: 1, parked car: 2}", "classes.json", "'road=1,parked car=2'"])
def test_mixtures_take_class_maps(classes, himtok, tmp_path):
    root = write("png", tmp_path / "data").root
    remove_names("png", root)
    (tmp_path / "classes.json").write_text(json.dumps({ROAD: 1, CAR: 2}))
    (tmp_path / "mix.yaml").write_text(f"parts: [{{dataset: png, root: data, classes: {classes}}}]")
    status, _, error = himtok("prepare", "mix", tmp_path / "mix.yaml", tmp_path / "out.jsonl", "--num_workers", 0)
    assert status == 0, error
    assert "parked car" in (tmp_path / "out.jsonl").read_text()
