"""SA-1B: masks in tar files."""

import io
import json
import tarfile

import numpy as np
import pytest
from on_disk import blob, decoded, records, write_image
from pycocotools import mask as coco

SIZE = (48, 64)


def entry(number, masks, **more):
    annotations = []
    for i, mask in enumerate(masks):
        rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        segmentation = {"size": rle["size"], "counts": rle["counts"].decode()}
        box = coco.toBbox(rle).tolist()
        annotations.append({"id": number * 100 + i, "segmentation": segmentation, "bbox": box, "area": int(mask.sum())})
    image = {"image_id": number, "width": 64, "height": 48, "file_name": f"sa_{number}.jpg"}
    return {"image": image, "annotations": annotations, **more}


def shard(path, entries, mode="w"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for content in entries:
            number = content["image"]["image_id"]
            for name, data in (
                (f"./sa_{number}.jpg", b"picture"),
                (f"./sa_{number}.json", json.dumps(content).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


MASKS = {number: [blob(seed=number * 10 + i) for i in range(3)] for number in (1, 2, 3)}


@pytest.fixture
def root(tmp_path):
    shard(tmp_path / "sa" / "sa_000000.tar", [entry(1, MASKS[1]), entry(2, MASKS[2])])
    shard(tmp_path / "sa" / "sa_000001.tar", [entry(3, MASKS[3])])
    return tmp_path / "sa"


def test_every_mask_of_every_shard_is_a_sample_for_stage_1(root, prepare):
    rows, summary, _ = prepare("sa1b", root)
    assert len(rows) == 9 and summary["images"] == 3
    for row, mask in zip(rows, (mask for number in (1, 2, 3) for mask in MASKS[number]), strict=True):
        assert set(row) == {"masks", "source"}
        np.testing.assert_array_equal(decoded(row["masks"][0]), mask)


def test_other_tasks_need_unpacked_images(root, prepare, tmp_path):
    error = prepare("sa1b", root, "--task", "box_to_mask", status=2)
    assert "(9 x image is missing" in error and "choose --task masks" in error
    for number in (1, 2, 3):
        write_image(tmp_path / "pictures" / f"sa_{number}.jpg", SIZE)
    rows, _, _ = prepare("sa1b", root, "--task", "box_to_mask", "--images", tmp_path / "pictures")
    assert len(rows) == 9 and rows[0]["images"] == [str(tmp_path / "pictures" / "sa_1.jpg")]


def test_unpacked_files_are_read_as_well(tmp_path, prepare):
    (tmp_path / "sa_1.json").write_text(json.dumps(entry(1, MASKS[1])))
    assert len(prepare("sa1b", tmp_path)[0]) == 3


def test_bad_shards_are_refused_and_bad_entries_counted(tmp_path, prepare):
    shard(tmp_path / "a" / "sa.tar.gz", [entry(1, MASKS[1])], "w:gz")
    assert "decompress its tar files" in prepare("sa1b", tmp_path / "a", status=2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "sa.tar").write_bytes(b"no tar" * 500)
    assert "is not an uncompressed tar" in prepare("sa1b", tmp_path / "b", status=2)
    bad = entry(1, MASKS[1])
    bad["annotations"][0]["segmentation"]["size"] = [64, 48]
    bad["annotations"][1]["segmentation"]["counts"] = "?"
    shard(tmp_path / "c" / "sa.tar", [bad, {"image": {"image_id": 4}, "annotations": []}])
    rows, summary, _ = prepare("sa1b", tmp_path / "c")
    assert len(rows) == 1
    assert summary["skipped"] == {"mask cannot be read": 2, "image has another size than its annotation": 1}


def test_the_given_class_is_incomplete_if_a_mask_is_skipped(root):
    bad = entry(1, MASKS[1])
    bad["annotations"][0]["segmentation"] = None
    shard(root / "sa_000000.tar", [bad, entry(2, MASKS[2])])
    found = [record.incomplete_classes for record in records("sa1b", root, category="thing")]
    assert found == [{"thing"}, set(), set()]


def test_a_truncated_shard_is_an_error_of_a_strict_run(root, prepare):
    path = root / "sa_000001.tar"
    path.write_bytes(path.read_bytes()[:2500])
    assert "sa_000001.tar" in prepare("sa1b", root, "--strict", status=2)
