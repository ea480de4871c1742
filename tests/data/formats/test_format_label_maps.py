"""COCO panoptic, ADE20K, Pascal VOC and Context, Cityscapes, COCO stuff: every region has the pixels of its label."""

import numpy as np
import pytest
from on_disk import decoded, write_image, write_json
from PIL import Image
from scipy.io import savemat

SIZE = (40, 56)
PANOPTIC_PNG = "annotations/panoptic_val2017/000000000009.png"


def blocks(*labels):
    """A map of vertical stripes."""
    values = np.zeros(SIZE, np.int32)
    for i, label in enumerate(labels):
        values[:, i * SIZE[1] // len(labels) : (i + 1) * SIZE[1] // len(labels)] = label
    return values


def save(path, values, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        Image.fromarray(values.astype(np.uint16)).save(path)
        return
    image = Image.fromarray(values.astype(np.uint8))
    if mode == "P":
        image.putpalette(np.random.default_rng(0).integers(0, 255, 768).tolist())
    image.save(path)


def check(rows, values, labels_by_name):
    """Each row's mask is all pixels of its labels."""
    assert {row["source"]["id"] for row in rows} == set(labels_by_name)
    for row in rows:
        expected = np.isin(values, labels_by_name[row["source"]["id"]])
        np.testing.assert_array_equal(decoded(row["masks"][0]), expected)


@pytest.fixture
def panoptic(tmp_path):
    numbers = blocks(0, 3226956, 7, 300, 65537)
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=2).astype(np.uint8)
    folder = tmp_path / "annotations"
    (folder / "panoptic_val2017").mkdir(parents=True)
    Image.fromarray(colours).save(folder / "panoptic_val2017" / "000000000009.png")
    segments = [
        {"id": 3226956, "category_id": 1, "iscrowd": 0},
        {"id": 7, "category_id": 1, "iscrowd": 0},
        {"id": 300, "category_id": 199, "iscrowd": 0},
        {"id": 65537, "category_id": 2, "iscrowd": 1},
    ]
    content = {
        "images": [{"id": 9, "file_name": "000000000009.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"image_id": 9, "file_name": "000000000009.png", "segments_info": segments}],
        "categories": [
            {"id": 1, "name": "person", "isthing": 1},
            {"id": 2, "name": "cup", "isthing": 1},
            {"id": 199, "name": "wall-other-merged", "isthing": 0},
        ],
    }
    write_json(folder / "panoptic_val2017.json", content)
    write_image(tmp_path / "val2017" / "000000000009.jpg", SIZE)
    return tmp_path, numbers, content


def test_panoptic_segment_ids_are_colours(panoptic, prepare):
    root, numbers, _ = panoptic
    rows, summary, _ = prepare("coco-panoptic", root, "--split", "val", "--task", "segment_class")
    check(rows, numbers, {"person": [3226956, 7], "wall": [300], "cup": [65537]})
    np.testing.assert_array_equal(decoded(rows[0]["ignore"][0]), numbers == 0)
    rows, summary, _ = prepare("coco-panoptic", root, "--split", "val", "--task", "segment_instances")
    assert [(row["source"]["id"], len(row["masks"])) for row in rows] == [("person", 2)]  # neither stuff nor the crowd
    assert summary["skipped"] == {"crowd: no single object": 1}


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("unknown category", lambda c, root: c["annotations"][0]["segments_info"][0].update(category_id=5)),
        ("entry lacks a field", lambda c, root: c["annotations"][0]["segments_info"].append(None)),
        ("entry lacks a field", lambda c, root: c["annotations"][0].update(segments_info=None)),
        ("mask has no pixels", lambda c, root: c["annotations"][0]["segments_info"][2].update(id=5)),
        ("mask cannot be read", lambda c, root: c["annotations"][0].update(file_name="no.png")),
        ("entry lacks a field", lambda c, root: c["annotations"].clear()),
        ("mask cannot be read", lambda c, root: save(root / PANOPTIC_PNG, np.ones((9, 9)))),
    ],
)  # fmt: skip
def test_panoptic_bad_input_is_counted(panoptic, prepare, reason, spoil):
    root, _, content = panoptic
    spoil(content, root)
    write_json(root / "annotations" / "panoptic_val2017.json", content)
    good = {"id": 10, "file_name": content["images"][0]["file_name"], "height": SIZE[0], "width": SIZE[1]}
    content["images"].append(good)
    save(root / "annotations" / "panoptic_val2017" / "good.png", np.ones((*SIZE, 3)) * (1, 0, 0))
    segments = [{"id": 1, "category_id": content["categories"][0]["id"]}]
    content["annotations"].append({"image_id": 10, "file_name": "good.png", "segments_info": segments})
    write_json(root / "annotations" / "panoptic_val2017.json", content)
    _, summary, _ = prepare("coco-panoptic", root, "--split", "val", "--task", "segment_class")
    assert summary["skipped"] == {reason: 1}


def ade(root, values):
    save(root / "annotations" / "training" / "ADE_train_00000001.png", values)
    write_image(root / "images" / "training" / "ADE_train_00000001.jpg", SIZE)
    info = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1576\t11664\t1172\t1\twall\n2\t0.1\t1\t1\t1\tbuilding, edifice\n"
    (root / "objectInfo150.txt").write_text(info)


def test_ade20k_classes(tmp_path, prepare):
    values = blocks(0, 1, 2, 1)
    ade(tmp_path, values)
    rows, summary, _ = prepare("ade20k", tmp_path)
    check(rows, values, {"wall": [1], "building": [2]})
    np.testing.assert_array_equal(decoded(rows[0]["ignore"][0]), values == 0)
    assert not summary["skipped"] and rows[0]["category"] == "wall"
    error = prepare("ade20k", tmp_path, "--task", "box_to_mask", status=2)
    assert "expected masks of single objects" in error and "choose --task segment_class or masks" in error


def test_ade20k_unknown_labels_and_maps_of_another_size_are_counted(tmp_path, prepare):
    ade(tmp_path, blocks(1, 99))
    assert prepare("ade20k", tmp_path)[1]["skipped"] == {"unknown category": 1}
    assert "unknown category" in prepare("ade20k", tmp_path, "--strict", status=2)
    ade(tmp_path, np.ones((9, 9)))
    assert "(1 x mask cannot be read, for example" in prepare("ade20k", tmp_path, status=2)


def test_ade20k_names_that_are_not_utf8_are_refused(tmp_path, prepare):
    ade(tmp_path, blocks(1, 2))
    path = tmp_path / "objectInfo150.txt"
    path.write_bytes(path.read_bytes().replace(b"wall", b"w\xe4nde"))
    assert "objectInfo150.txt: got byte 0xe4 at 54, which is not UTF-8" in prepare("ade20k", tmp_path, status=2)


def test_a_missing_table_of_names_is_named_without_an_option_that_does_not_exist(tmp_path, prepare):
    ade(tmp_path, blocks(1, 2))
    (tmp_path / "objectInfo150.txt").unlink()
    error = prepare("ade20k", tmp_path, status=2)
    assert "found none of objectInfo150.txt" in error and "--objectInfo150" not in error and "put it there" in error


def test_a_label_map_of_the_stored_pixels_is_refused_with_the_orientation(tmp_path, prepare):
    ade(tmp_path, blocks(1, 2))
    (path,) = (tmp_path / "images" / "training").iterdir()
    exif = Image.Exif()
    exif[274] = 6
    Image.open(path).save(path, exif=exif)
    error = prepare("ade20k", tmp_path, status=2, skipped=True)[1][0]["detail"]
    assert "EXIF orientation" in error and "mogrify -auto-orient" in error


def voc(root, classes, objects):
    top = root / "VOCdevkit" / "VOC2012"
    save(top / "SegmentationClass" / "2007_000032.png", classes, "P")
    save(top / "SegmentationObject" / "2007_000032.png", objects, "P")
    write_image(top / "JPEGImages" / "2007_000032.jpg", SIZE)
    (top / "ImageSets" / "Segmentation").mkdir(parents=True)
    (top / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n")


def test_voc_objects_and_classes(tmp_path, prepare):
    objects = blocks(0, 1, 255, 2, 3)
    classes = blocks(0, 15, 255, 15, 20)
    voc(tmp_path, classes, objects)
    rows, _, _ = prepare("voc", tmp_path, "--task", "segment_class")
    check(rows, classes, {"person": [15], "tv monitor": [20]})
    np.testing.assert_array_equal(decoded(rows[0]["ignore"][0]), classes == 255)
    rows, _, _ = prepare("voc", tmp_path, "--task", "segment_instances")
    for mask, number in zip(rows[0]["masks"], (1, 2), strict=True):
        np.testing.assert_array_equal(decoded(mask), objects == number)


def test_pascal_context_as_png_and_as_matlab(tmp_path, prepare):
    values = blocks(0, 22, 40, 59)
    top = tmp_path / "png" / "VOCdevkit" / "VOC2010"
    save(top / "SegmentationClassContext" / "a.png", values)
    write_image(top / "JPEGImages" / "a.jpg", SIZE)
    (top / "ImageSets" / "SegmentationContext").mkdir(parents=True)
    (top / "ImageSets" / "SegmentationContext" / "train.txt").write_text("a\n")
    rows, _, _ = prepare("pascal-context", tmp_path / "png")
    check(rows, values, {"curtain": [22], "potted plant": [40], "wood": [59]})

    top, values = tmp_path / "mat", blocks(2, 459, 2)
    (top / "trainval").mkdir(parents=True)
    savemat(top / "trainval" / "a.mat", {"LabelMap": values.astype(np.uint16)})
    (top / "labels.txt").write_text("2: aeroplane\n459: zebra crossing\n")
    write_image(top / "JPEGImages" / "a.jpg", SIZE)
    (top / "ImageSets" / "Main").mkdir(parents=True)
    (top / "ImageSets" / "Main" / "train.txt").write_text("a 1\n")
    rows, _, _ = prepare("pascal-context", top)
    check(rows, values, {"aeroplane": [2], "zebra crossing": [459]})
    (top / "trainval" / "a.mat").write_bytes(b"no matlab")
    assert "(1 x mask cannot be read, for example" in prepare("pascal-context", top, status=2)


def test_cityscapes_objects_groups_and_stuff(tmp_path, prepare):
    values = blocks(3, 7, 24000, 24001, 26, 23)
    name = "aachen_000000_000019"
    save(tmp_path / "gtFine" / "train" / "aachen" / f"{name}_gtFine_instanceIds.png", values, "I;16")
    save(tmp_path / "gtFine" / "train" / "aachen" / f"{name}_gtFine_labelIds.png", values % 200)
    write_image(tmp_path / "leftImg8bit" / "train" / "aachen" / f"{name}_leftImg8bit.png", SIZE)
    rows, _, _ = prepare("cityscapes", tmp_path, "--task", "segment_class")
    check(rows, values, {"road": [7], "person": [24000, 24001], "car": [26], "sky": [23]})
    np.testing.assert_array_equal(decoded(rows[0]["ignore"][0]), values == 3)
    rows, summary, _ = prepare("cityscapes", tmp_path, "--task", "segment_instances")
    assert [(row["source"]["id"], len(row["masks"])) for row in rows] == [("person", 2)]
    assert summary["skipped"] == {"crowd: no single object": 1}  # a group of cars


def stuff(root, values, folder="stuffthingmaps", labels="labels.txt"):
    save(root / folder / "train2017" / "000000000009.png", values)
    write_image(root / "train2017" / "000000000009.jpg", SIZE)
    if labels:
        names = {0: "unlabeled", 1: "person", 2: "bicycle", 92: "banner", 95: "wall-tile", 182: "wood"}
        (root / labels).write_text("".join(f"{id}: {name}\n" for id, name in names.items()))


def test_coco_stuff_as_maps_of_things_and_stuff(tmp_path, prepare):
    values = blocks(0, 94, 255, 181, 0)
    stuff(tmp_path, values)
    save(tmp_path / "stuffthingmaps" / "train2017" / "000000000009_labelTrainIds.png", values)
    rows, summary, _ = prepare("coco-stuff", tmp_path)
    check(rows, values, {"person": [0], "wall tile": [94], "wood": [181]})
    np.testing.assert_array_equal(decoded(rows[0]["ignore"][0]), values == 255)
    assert not summary["skipped"] and summary["images"] == 1
    assert rows[0]["images"] == [str(tmp_path / "train2017" / "000000000009.jpg")]


def test_missing_names_and_unknown_labels_of_coco_stuff_maps(tmp_path, prepare):
    stuff(tmp_path / "a", blocks(0, 94), labels=None)
    error = prepare("coco-stuff", tmp_path / "a", status=2)
    assert "no labels.txt" in error and "1: person" in error
    stuff(tmp_path / "b", blocks(0, 200), "cocostuff", "cocostuff/labels.txt")
    rows, summary, _ = prepare("coco-stuff", tmp_path / "b")
    assert len(rows) == 1 and summary["skipped"] == {"unknown category": 1}
    assert "stuff_train2017.json" in prepare("coco-stuff", tmp_path, status=2)
