"""COCO's layout: every form of segmentation is decoded exactly, every fault of an entry is counted."""

import json

import numpy as np
import pytest
from on_disk import (
    blob,
    by_pycocotools,
    coco_annotation,
    coco_file,
    decoded,
    polygon,
    records,
    uncompressed,
    write_image,
    write_json,
)
from pycocotools import mask as coco

SIZE = (48, 64)


def image(id, **more):
    return {"id": id, "file_name": f"{id:012}.jpg", "height": SIZE[0], "width": SIZE[1], **more}


@pytest.fixture
def dataset(tmp_path):
    """Two images with annotations, one without; not in the order of the images. (root, content)"""
    root = tmp_path / "coco"
    compressed = coco.encode(np.asfortranarray(blob(seed=3), dtype=np.uint8))
    annotations = [
        coco_annotation(11, 9, [polygon(1)], category_id=18),
        coco_annotation(12, 7, [polygon(2), polygon(3)]),
        coco_annotation(13, 9, uncompressed(blob(seed=1)), category_id=18),
        coco_annotation(14, 7, {"size": list(SIZE), "counts": compressed["counts"].decode()}, category_id=18),
    ]
    content = coco_file([image(7), image(9), image(5)], annotations)
    for i in (5, 7, 9):
        write_image(root / "train2017" / f"{i:012}.jpg", SIZE)
    write_json(root / "annotations" / "instances_train2017.json", content)
    return root, content


def rewrite(root, content):
    write_json(root / "annotations" / "instances_train2017.json", content)


def test_masks_equal_those_of_pycocotools(dataset, prepare):
    root, content = dataset
    rows, summary, _ = prepare("coco", root, "--task", "box_to_mask")
    assert [row["source"]["image_id"] for row in rows] == ["7", "7", "9", "9"]  # images in the order of the file
    by_id = {str(a["id"]): a for a in content["annotations"]}
    assert [row["source"]["id"] for row in rows] == ["12", "14", "11", "13"]
    for row in rows:
        annotation = by_id[row["source"]["id"]]
        np.testing.assert_array_equal(decoded(row["masks"][0]), by_pycocotools(annotation["segmentation"], SIZE))
        x, y, w, h = annotation["bbox"]
        np.testing.assert_allclose(row["objects"]["bbox"], [[x, y, x + w, y + h]], atol=0.01)
        assert row["messages"][0]["content"].startswith("<image>") and "<bbox>" in row["messages"][0]["content"]
        assert row["messages"][1]["content"].count("<mask>") == 1
        assert row["images"] == [str(root / "train2017" / f"{int(row['source']['image_id']):012}.jpg")]
    assert summary["images"] == 3 and not summary["skipped"]


def test_a_class_has_one_mask_of_all_its_objects_and_instances_one_each(dataset, prepare):
    root, content = dataset
    rows, _, _ = prepare("coco", root)
    lights = [row for row in rows if row["source"]["id"] == "traffic light" and row["source"]["image_id"] == "9"]
    of_class, of_instances = lights
    own = [by_pycocotools(content["annotations"][i]["segmentation"], SIZE) for i in (0, 2)]
    np.testing.assert_array_equal(decoded(of_class["masks"][0]), own[0] | own[1])
    assert len(of_instances["masks"]) == 2 and of_instances["messages"][1]["content"].count("<mask>") == 2
    assert "traffic light" in of_instances["messages"][0]["content"]


def test_the_chunk_size_of_reading_changes_nothing(dataset, prepare, monkeypatch):
    root, _ = dataset
    rows, _, _ = prepare("coco", root)
    for chunk in (1, 7, 100):
        monkeypatch.setattr("himtok_plugin.data.byte_ranges.CHUNK", chunk)
        assert prepare("coco", root)[0] == rows


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("unknown category", lambda c: c["annotations"][0].update(category_id=99)),
        ("mask has no pixels", lambda c: c["annotations"][0].update(segmentation=[[5, 5, 5, 5, 5, 5]])),
        ("mask has no pixels", lambda c: c["annotations"][0].update(segmentation=[])),
        ("mask cannot be read", lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]])),
        ("mask cannot be read", lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4, float("nan"), 6]])),
        ("mask cannot be read", lambda c: c["annotations"][0].update(segmentation=[[0, 0, 9e9, 0, 0, 9]])),
        ("mask cannot be read", lambda c: c["annotations"][0].update(segmentation={"size": [48, 64], "counts": [5]})),
        ("mask cannot be read", lambda c: c["annotations"][0].update(segmentation="x")),
        ("mask cannot be read", lambda c: c["annotations"][2]["segmentation"].update(size=[64, 48])),
        ("id is not in the file", lambda c: c["annotations"][0].update(image_id=1234)),
        ("id occurs more than once", lambda c: c["annotations"].append(dict(c["annotations"][0]))),
        ("id occurs more than once", lambda c: c["categories"].append({"id": 1, "name": "cat"})),
        ("entry lacks a field", lambda c: c["annotations"].append("nothing")),
        ("entry lacks a field", lambda c: c["annotations"].append({"id": 99})),
        ("box is not x1 < x2, y1 < y2 within its image", lambda c: c["annotations"][0].update(bbox=[9, 9, 0, 5])),
        ("box is not x1 < x2, y1 < y2 within its image", lambda c: c["annotations"][0].update(bbox=["a"])),
        ("crowd: no single object", lambda c: c["annotations"][2].update(iscrowd=1)),
    ],
)
def test_a_bad_annotation_is_counted_and_the_others_are_used(dataset, prepare, reason, spoil):
    root, content = dataset
    before = len(prepare("coco", root, "--task", "box_to_mask")[0])
    spoil(content)
    rewrite(root, content)
    rows, summary, entries = prepare("coco", root, "--task", "box_to_mask")
    assert summary["skipped"] == {reason: 1} and entries[0]["detail"]
    assert len(rows) in (before - 1, before)
    assert reason in prepare("coco", root, "--task", "box_to_mask", "--strict", status=2)


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("image is missing", lambda root: (root / "train2017" / "000000000007.jpg").unlink()),
        (
            "image has another size than its annotation",
            lambda root: write_image(root / "train2017/000000000007.jpg", (9, 9)),
        ),
        ("image cannot be read", lambda root: (root / "train2017" / "000000000007.jpg").write_bytes(b"no image")),
        (
            "annotation does not belong to the upright image (EXIF orientation)",
            lambda root: write_image(root / "train2017/000000000007.jpg", SIZE, orientation=8),
        ),
    ],
)
def test_a_bad_image_is_counted(dataset, prepare, reason, spoil):
    root, _ = dataset
    spoil(root)
    rows, summary, _ = prepare("coco", root, "--task", "box_to_mask")
    assert summary["skipped"] == {reason: 1} and len(rows) == 2
    assert reason in prepare("coco", root, "--strict", status=2)


def test_images_may_be_missing_if_they_are_not_checked(dataset, prepare):
    root, _ = dataset
    (root / "train2017" / "000000000007.jpg").unlink()
    rows, summary, _ = prepare("coco", root, "--no_check_images", "--relative_paths", "--task", "box_to_mask")
    assert len(rows) == 4 and not summary["skipped"]
    assert rows[0]["images"] == ["train2017/000000000007.jpg"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.95])
def test_a_truncated_file_is_an_error_with_the_position(dataset, prepare, share):
    root, _ = dataset
    path = root / "annotations" / "instances_train2017.json"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    error = prepare("coco", root, status=2)
    assert "instances_train2017.json: is not JSON at byte" in error and "cut off" in error


def test_text_that_is_not_utf8_is_counted(dataset, prepare):
    root, _ = dataset
    path = root / "annotations" / "instances_train2017.json"
    path.write_bytes(path.read_bytes().replace(b"000000000007.jpg", b"00000000000\xff.jpg"))
    rows, summary, _ = prepare("coco", root, "--task", "box_to_mask")
    assert summary["skipped"] == {"text is not UTF-8": 1} and len(rows) == 2


def test_a_class_whose_name_is_not_utf8_is_counted_and_so_are_its_annotations(dataset, prepare):
    root, content = dataset
    path = root / "annotations" / "instances_train2017.json"
    path.write_bytes(path.read_bytes().replace(b"traffic light", b"caf\xe9"))
    rows, summary, _ = prepare("coco", root, "--task", "box_to_mask")
    others = [a for a in content["annotations"] if a["category_id"] != 18]
    assert summary["skipped"] == {"text is not UTF-8": 1, "unknown category": 3} and len(rows) == len(others)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "has no annotations and no images"),
        ('{"images": [], "annotations": []}', "has no categories"),
        ("5", "expected an object or a list"),
        ("", "expected an object or a list"),
        ('{"images": []} 5', "expected nothing more"),
    ],
)
def test_a_file_in_another_layout_is_refused(dataset, prepare, content, message):
    root, _ = dataset
    (root / "annotations" / "instances_train2017.json").write_text(content)
    assert message in prepare("coco", root, status=2)


def test_polygons_are_clipped_to_the_image(dataset, prepare):
    root, content = dataset
    content["annotations"] = [coco_annotation(1, 7, [[-10, -10, 20, -10, 20, 30, -10, 30]])]
    rewrite(root, content)
    rows, _, _ = prepare("coco", root, "--task", "masks")
    expected = np.zeros(SIZE, bool)
    expected[:30, :20] = True
    np.testing.assert_array_equal(decoded(rows[0]["masks"][0]), expected)
    assert set(rows[0]) == {"masks", "source"}


def test_polygons_beyond_any_border_equal_those_of_pycocotools(dataset, prepare):
    root, content = dataset
    rng = np.random.default_rng(0)
    ends = np.array([SIZE[1], SIZE[0]])
    reaching = [(rng.uniform(-1, 2, (5, 2)) * ends).round(2).ravel().tolist() for _ in range(40)]
    content["annotations"] = [coco_annotation(i, 7, [polygon]) for i, polygon in enumerate(reaching, 1)]
    content["annotations"].append(coco_annotation(99, 7, [reaching[0], [-20.5, 3, 9, -30.2, 50, 60]]))
    rewrite(root, content)
    rows, _, _ = prepare("coco", root, "--task", "masks")
    by_id = {str(a["id"]): a for a in content["annotations"]}
    assert len(rows) > 30
    for row in rows:
        expected = by_pycocotools(by_id[row["source"]["id"]]["segmentation"], SIZE)
        np.testing.assert_array_equal(decoded(row["masks"][0]), expected)


def test_a_crowd_counts_for_its_class_and_for_no_single_object(dataset, prepare):
    root, content = dataset
    content["annotations"][2]["iscrowd"] = 1
    rewrite(root, content)
    rows, summary, _ = prepare("coco", root)
    of_nine = [row for row in rows if row["source"]["image_id"] == "9"]
    assert [row["source"]["task"] for row in of_nine] == ["segment_class"]
    own = [by_pycocotools(content["annotations"][i]["segmentation"], SIZE) for i in (0, 2)]
    np.testing.assert_array_equal(decoded(of_nine[0]["masks"][0]), own[0] | own[1])
    assert summary["skipped"] == {"crowd: no single object": 1}


def test_lvis_finds_images_by_their_url_and_negatives_among_its_verified_classes(tmp_path, prepare):
    root = tmp_path / "lvis"
    images = [
        {"id": i, "coco_url": f"http://images.cocodataset.org/val2017/{i}.jpg", "height": 48, "width": 64,
         "neg_category_ids": [3] if i == 1 else [], "not_exhaustive_category_ids": []}
        for i in (1, 2)
    ]  # fmt: skip
    categories = ((1, "trash_can"), (2, "bow_(weapon)"), (3, "cat"))
    annotations = [coco_annotation(1, 1, [polygon(1)]), coco_annotation(2, 2, [polygon(2)], category_id=3),
                   coco_annotation(3, 2, [polygon(3)], category_id=2)]  # fmt: skip
    write_json(root / "lvis_v1_train.json", coco_file(images, annotations, categories))
    for i in (1, 2):
        write_image(root / "val2017" / f"{i}.jpg")
    rows, _, _ = prepare("lvis", root, "--task", "segment_class", "--task", "negative")
    assert [row["source"]["id"] for row in rows] == ["trash can", "/2", "cat", "bow (weapon)"]
    assert "cat" in rows[1]["messages"][0]["content"] and rows[1]["masks"] == []
    assert "no cat" in rows[1]["messages"][1]["content"]


def test_own_coco_json_with_names_beyond_ascii_and_string_ids(tmp_path, prepare):
    root = tmp_path / "own"
    images = [{"id": "a1", "file_name": "größe.png", "height": 48, "width": 64}]
    content = coco_file(images, [coco_annotation(1, "a1", [polygon(1)])], ((1, "Ampel grün"),))
    path = root / "annotations.json"
    write_image(root / "images" / "größe.png")
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    rows, summary, _ = prepare("coco-json", root, "--task", "segment_class")
    assert rows[0]["source"]["id"] == "Ampel grün" and not summary["skipped"]
    assert rows[0]["images"][0].endswith("größe.png")


def test_names_of_paco_parts_and_stuff_classes(tmp_path, prepare):
    images = [{"id": 1, "file_name": "train2017/1.jpg", "height": 48, "width": 64}]
    write_image(tmp_path / "train2017" / "1.jpg")
    annotations = [coco_annotation(1, 1, [polygon(1)]), coco_annotation(2, 1, [polygon(2)], category_id=2)]
    categories = ((1, "trash_can"), (2, "trash_can:lid"))
    write_json(tmp_path / "paco_lvis_v1_train.json", coco_file(images, annotations, categories))
    rows, _, _ = prepare("paco", tmp_path, "--task", "segment_class")
    assert [row["source"]["id"] for row in rows] == ["trash can", "lid of the trash can"]
    np.testing.assert_array_equal(decoded(rows[1]["masks"][0]), by_pycocotools([polygon(2)], SIZE))

    images[0]["file_name"] = "1.jpg"
    stuff = coco_file(images, annotations, ((1, "wall-tile"), (2, "other")))
    write_json(tmp_path / "annotations" / "stuff_train2017.json", stuff)
    assert [row["source"]["id"] for row in prepare("coco-stuff", tmp_path)[0]] == ["wall tile"]


def test_lvis_classes_that_are_not_exhaustive_are_incomplete(tmp_path, prepare):
    image = {"id": 1, "coco_url": "http://images.cocodataset.org/val2017/1.jpg", "height": 48, "width": 64,
             "neg_category_ids": [3], "not_exhaustive_category_ids": [2, 99]}  # fmt: skip
    annotations = [coco_annotation(i, 1, [polygon(i)], category_id=i) for i in (1, 2)]
    content = coco_file([image], annotations, ((1, "dog"), (2, "trash_can"), (3, "cat")))
    write_image(tmp_path / "val2017" / "1.jpg")
    for name, file in (("lvis", "lvis_v1_train.json"), ("paco", "paco_lvis_v1_train.json")):
        write_json(tmp_path / file, content)
        (record,) = records(name, tmp_path)
        assert record.incomplete_classes == {"trash can"} and record.present == {"dog", "trash can"}
        rows, _, _ = prepare(name, tmp_path)
        assert {row["source"]["id"] for row in rows} == {"dog"}
        assert len(prepare(name, tmp_path, "--task", "name_region")[0]) == 2


@pytest.mark.parametrize(
    ("incomplete", "spoil"),
    [
        ({"dog"}, lambda c: c["annotations"][0].update(segmentation=[])),
        ({"dog"}, lambda c: c["annotations"][0].pop("segmentation")),  # a box only
        ({"dog"}, lambda c: c["annotations"][0].update(segmentation="x")),
        ({"dog"}, lambda c: c["annotations"][0].update(bbox=["a"])),
        (set(), lambda c: c["annotations"][0].update(id=2)),  # two objects, although they have the same id
        (set(), lambda c: c["annotations"][0].update(category_id=99)),
        (set(), lambda c: c["annotations"][0].update(image_id=1234)),
        ({"dog", "traffic light"}, lambda c: c["annotations"][0].update(caption="damaged")),
    ],
)
def test_a_class_is_incomplete_if_an_annotation_of_it_has_no_mask(tmp_path, incomplete, spoil):
    of_light = coco_annotation(3, 7, [polygon(3)], category_id=18)
    content = coco_file(
        [image(7)], [coco_annotation(1, 7, [polygon(1)]), coco_annotation(2, 7, [polygon(2)]), of_light]
    )
    content["annotations"].reverse()
    content["annotations"].insert(0, content["annotations"].pop())
    spoil(content)
    write_image(tmp_path / "train2017" / f"{7:012}.jpg", SIZE)
    path = write_json(tmp_path / "annotations" / "instances_train2017.json", content)
    path.write_bytes(path.read_bytes().replace(b"damaged", b"d\xff"))
    (record,) = records("coco", tmp_path)
    assert record.incomplete_classes == incomplete
    assert record.present == {"dog", "traffic light"}
    # An unreadable annotation may be of any class.
    assert record.absent == (frozenset() if len(incomplete) > 1 else None)


def own_coco(root, *files):
    for number, file in enumerate(files, 1):
        folder = (root / file).parent
        content = coco_file([{"id": number, "file_name": f"{number}.png", "height": 48, "width": 64}],
                            [coco_annotation(1, number, [polygon(1)])])  # fmt: skip
        write_json(root / file, content)
        write_image((folder if "_annotations" in file else root / "images") / f"{number}.png", SIZE)


def test_a_split_of_own_coco_json_is_a_file_or_folder_of_its_name(tmp_path, prepare):
    def ids(root, *arguments):
        return [row["source"]["image_id"] for row in prepare("coco-json", root, "--task", "masks", *arguments)[0]]

    roboflow = tmp_path / "roboflow"
    own_coco(roboflow, *(f"{split}/_annotations.coco.json" for split in ("train", "valid", "test")))
    assert [ids(roboflow, "--split", split) for split in ("train", "val", "test")] == [["1"], ["2"], ["3"]]
    named = tmp_path / "named"
    own_coco(named, "train.json", "annotations/instances_val.json")
    assert ids(named, "--split", "train") == ["1"] and ids(named, "--split", "val") == ["2"]
    assert "found none of" in prepare("coco-json", named, "--split", "test", status=2)
    assert ids(named, "--split", "test", "--annotations", named / "train.json") == ["1"]
    only = tmp_path / "only"
    own_coco(only, "whatever.json")
    assert ids(only) == ["1"] and "found none of" in prepare("coco-json", only, "--split", "train", status=2)
    own_coco(only, "whatever.json", "other.json")
    assert "name it with --annotations" in prepare("coco-json", only, status=2)
