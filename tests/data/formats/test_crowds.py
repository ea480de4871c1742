"""`iscrowd`: groups of objects as in COCO, or single objects as CVAT and datumaro write masks, wherever it occurs."""

import json

import pytest
from on_disk import blob, uncompressed
from tiny_datasets import SIZE, write

CROWD = "crowd: no single object"
FORMATS_WITH_CROWDS = {
    "coco": "annotations/instances_train2017.json",
    "lvis": "lvis_v1_train.json",
    "paco": "paco_lvis_v1_train.json",
    "coco-json": "annotations.json",
    "refcoco": "refcoco/instances.json",
    "grefcoco": "grefcoco/instances.json",
    "coco-panoptic": "annotations/panoptic_train2017.json",
}


def spoil(root, name, change):
    """Change the masks of a tiny dataset: `change(number, annotation or panoptic segment)`."""
    path = root / FORMATS_WITH_CROWDS[name]
    content = json.loads(path.read_text())
    masks = [
        mask for annotation in content["annotations"] for mask in annotation.get("segments_info", None) or [annotation]
    ]
    for number, mask in enumerate(masks):
        if "segmentation" in mask:
            mask["segmentation"] = uncompressed(blob(SIZE, number))
        change(number, mask)
    path.write_text(json.dumps(content))


@pytest.fixture(params=FORMATS_WITH_CROWDS)
def name(request):
    return request.param


def test_a_file_of_crowds_alone_has_objects_and_says_so(name, prepare, tmp_path):
    root = write(name, tmp_path / "data").root
    whole = len(prepare(name, root, "--task", "box_to_mask")[0])
    spoil(root, name, lambda number, mask: mask.update(iscrowd=1))
    rows, summary, _ = prepare(name, root, "--task", "box_to_mask")
    assert len(rows) == whole and summary["skipped"] == {}
    (note,) = summary["notes"]
    assert "masks have iscrowd 1, as CVAT and datumaro write masks" in note and "--crowds groups" in note


def test_a_crowd_beside_other_rles_is_a_group_and_the_option_decides(name, prepare, tmp_path):
    root = write(name, tmp_path / "data").root
    whole = len(prepare(name, root, "--task", "box_to_mask")[0])
    spoil(root, name, lambda number, mask: mask.update(iscrowd=int(number == 0)))
    rows, summary, _ = prepare(name, root, "--task", "box_to_mask")
    assert len(rows) == whole - 1 and summary["skipped"] == {CROWD: 1}
    assert "--crowds objects" in summary["notes"][0]
    for choice, count in (("objects", whole), ("groups", whole - 1)):
        rows, summary, _ = prepare(name, root, "--task", "box_to_mask", "--crowds", choice)
        assert len(rows) == count and summary["notes"] == []


@pytest.mark.parametrize(("attributes", "objects"), [(True, 2), (False, 1)])
def test_rle_with_attributes_beside_polygons_is_of_cvat_or_datumaro(prepare, tmp_path, attributes, objects):
    root = write("coco-json", tmp_path / "data").root
    path = root / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0].update(segmentation=uncompressed(blob(SIZE)), iscrowd=1)
    if attributes:
        content["annotations"][0]["attributes"] = {"occluded": False}
    path.write_text(json.dumps(content))
    assert len(prepare("coco-json", root, "--task", "box_to_mask")[0]) == objects


@pytest.mark.parametrize(("value", "is_crowd"), [(1, True), (True, True), ("1", True), (0, False), ("0", False)])
def test_iscrowd_may_be_text_or_a_truth_value(prepare, tmp_path, value, is_crowd):
    root = write("coco-json", tmp_path / "data").root
    spoil(root, "coco-json", lambda number, mask: mask.update(iscrowd=value if number == 0 else 0))
    assert len(prepare("coco-json", root, "--task", "box_to_mask")[0]) == 2 - is_crowd


def test_the_option_is_refused_where_there_are_no_crowds(prepare, tmp_path):
    root = write("labelme", tmp_path / "data").root
    assert "--crowds: got one for labelme, which has no use for it, expected refcoco" in prepare(
        "labelme", root, "--crowds", "objects", status=2
    )
    root = write("coco", tmp_path / "coco").root
    assert "--crowds: got 'all', expected one of auto, objects, groups" in prepare(
        "coco", root, "--crowds", "all", status=2
    )
