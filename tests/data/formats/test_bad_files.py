"""One bad file never ends a conversion: it is listed with a reason and the rest goes on; `--strict` stops at it."""

import base64
import errno
import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
from on_disk import coco_annotation, coco_file, polygon, write_image, write_json
from tiny_datasets import write

SIZE = (48, 64)
LONG = "x" * 300 + ".jpg"


def own_coco(root, **of_second):
    """Two images; `of_second` changes the entry of the second one."""
    names = ["a.jpg", "b.jpg"]
    images = [{"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(names)]
    images[1] |= of_second
    for name in names:
        write_image(root / name, SIZE)
    write_json(root / "annotations.json", coco_file(images, [coco_annotation(i, i, [polygon(i)]) for i in (0, 1)]))


def is_skipped(prepare, name, root, reason, contains="", rows=1, *arguments):
    """Check that a run goes on without what is skipped once, for this reason, and that a strict run stops."""
    found, summary, entries = prepare(name, root, "--task", "masks", *arguments)
    assert len(found) == rows and summary["skipped"] == {reason: 1}
    (detail,) = [entry["detail"] for entry in entries if entry["reason"] == reason]
    assert contains in detail and "\n" not in detail
    assert reason in prepare(name, root, "--task", "masks", *arguments, "--strict", status=2)


@pytest.mark.parametrize("name", [LONG, f"https://host/{LONG}", "b\0.jpg", f"{'y' * 300}/c.jpg", "", None, 5, ["x"]])
def test_names_that_no_file_has_are_listed(tmp_path, prepare, name):
    own_coco(tmp_path / "data", file_name=name)
    is_skipped(prepare, "coco-json", tmp_path / "data", "image is missing")


def test_a_name_that_is_too_long_is_listed_without_the_check_of_images(tmp_path, prepare):
    own_coco(tmp_path / "data", file_name="b\0.jpg")
    rows, summary, _ = prepare("coco-json", tmp_path / "data", "--task", "masks", "--no_check_images")
    assert len(rows) == 1 and summary["skipped"] == {"image is missing": 1}


def test_links_that_lead_to_themselves_are_listed(tmp_path, prepare):
    own_coco(tmp_path / "data")
    (tmp_path / "data" / "b.jpg").unlink()
    (tmp_path / "data" / "b.jpg").symlink_to("b.jpg")
    is_skipped(prepare, "coco-json", tmp_path / "data", "image is missing", "symbolic links")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_images_are_listed(tmp_path, prepare, suffix, share):
    root = tmp_path / "data"
    own_coco(root, file_name=f"b.{suffix}")
    path = write_image(root / f"b.{suffix}", SIZE)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    is_skipped(prepare, "coco-json", root, "image cannot be read", f"b.{suffix}")


def bomb(side):
    """A PNG of a few kilobytes that claims side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((side // 8 + 1) * 50))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [16000, 60000])
def test_decompression_bombs_are_listed(tmp_path, prepare, side):
    root = tmp_path / "data"
    own_coco(root, file_name="b.png")
    (root / "b.png").write_bytes(bomb(side))
    is_skipped(prepare, "coco-json", root, "image cannot be read", "b.png")


def label_me(root, name="a", **changes):
    write_image(root / f"{name}.png", SIZE)
    points = [[1, 1], [30, 1], [30, 30]]
    shape = {"label": "cup", "points": points, "shape_type": "polygon"} | changes
    content = {"shapes": [shape], "imagePath": f"{name}.png", "imageHeight": 48, "imageWidth": 64}
    return write_json(root / f"{name}.json", content)


@pytest.mark.parametrize("side", [16000, 60000])
def test_a_labelme_mask_that_is_a_decompression_bomb_is_listed(tmp_path, prepare, side):
    root = tmp_path / "data"
    label_me(root)
    mask = base64.b64encode(bomb(side)).decode()
    label_me(root, "b", shape_type="mask", mask=mask, points=[[0, 0], [side - 1, side - 1]])
    is_skipped(prepare, "labelme", root, "mask cannot be read", "b.json")


def test_a_mask_file_that_is_a_decompression_bomb_is_listed(tmp_path, prepare):
    tiny = write("png", tmp_path / "data")
    (tiny.root / "masks" / "1.png").write_bytes(bomb(16000))
    is_skipped(prepare, "png", tiny.root, "mask cannot be read", "1.png")


def make_loop(path):
    path.symlink_to(path.name)


def make_pipe(path):
    os.mkfifo(path)


def make_dead_link(path):
    path.symlink_to("nowhere")


BAD_FILES = {
    "a link to itself": make_loop, "a link to nothing": make_dead_link, "a pipe": make_pipe, "a folder": Path.mkdir
}  # fmt: skip


@pytest.mark.parametrize("make", BAD_FILES.values(), ids=list(BAD_FILES))
@pytest.mark.parametrize(
    ("name", "file"),
    [("labelme", "c.json"), ("png", "masks/0_1.png"), ("sa1b", "b.tar"), ("ade20k", "annotations/training/c.png")],
)
def test_what_is_called_like_a_file_and_is_none_is_listed(tmp_path, prepare, name, file, make):
    tiny = write(name, tmp_path / "data")
    expected = prepare(name, tiny.root)[0]
    make(tiny.root / file)
    rows, summary, entries = prepare(name, tiny.root)
    assert rows == expected and summary["skipped"] == {"file cannot be read": 1}
    (detail,) = [entry["detail"] for entry in entries if entry["reason"] == "file cannot be read"]
    assert file in detail
    assert file in prepare(name, tiny.root, "--strict", status=2)


@pytest.mark.parametrize("make", [make_loop, make_pipe])
def test_a_yolo_label_that_is_no_file_is_listed(tmp_path, prepare, make):
    tiny = write("yolo", tmp_path / "data")
    label = tiny.root / "labels" / "train" / "1.txt"
    label.unlink()
    make(label)
    is_skipped(prepare, "yolo", tiny.root, "file cannot be read", "1.txt")


@pytest.mark.parametrize("name", ["labelme", "png", "sa1b", "ade20k", "yolo"])
def test_folders_that_cannot_be_listed_are_listed_as_skipped(tmp_path, prepare, name, monkeypatch):
    tiny = write(name, tmp_path / "data")
    where = {"png": "masks", "ade20k": "annotations/training", "yolo": "images/train"}.get(name, "")
    (tiny.root / where / "closed").mkdir()
    expected = prepare(name, tiny.root)[0]
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    rows, summary, entries = prepare(name, tiny.root)
    assert rows == expected and summary["skipped"] == {"folder cannot be read": 1}
    assert "closed: Permission denied" in entries[0]["detail"]
    assert "closed" in prepare(name, tiny.root, "--strict", status=2)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_the_disk_does_not_return_is_listed(tmp_path, prepare, number, monkeypatch):
    label_me(tmp_path / "data")
    label_me(tmp_path / "data", "b")
    real = Path.read_bytes

    def read_bytes(path):
        if path.name == "b.json":
            raise OSError(number, os.strerror(number), str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    is_skipped(prepare, "labelme", tmp_path / "data", "file cannot be read", f"b.json: {os.strerror(number)}")


def test_a_full_disk_ends_the_run(tmp_path, prepare, monkeypatch):
    label_me(tmp_path / "data")

    def read_bytes(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    assert "No space left" in prepare("labelme", tmp_path / "data", status=2)


def sa1b_tar(path, *sizes):
    """A tar file of members of JSON; a size of a member may be claimed to be another than it is."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for i, size in enumerate(sizes):
            image = {"image_id": i, "width": 64, "height": 48, "file_name": f"sa_{i}.jpg"}
            annotation = {"id": i, "segmentation": {"size": [48, 64], "counts": [9, 3063]}}
            content = {"image": image, "annotations": [annotation]}
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"sa_{i}.json")
            member.size = len(data)
            at = stream.tell()
            archive.addfile(member, io.BytesIO(data))
            if size is not None:
                member.size = size
                stream.seek(at)
                stream.write(member.tobuf())
                stream.seek(0, io.SEEK_END)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())


@pytest.mark.parametrize("claimed", [10**10, 10**15])
def test_huge_members_of_a_tar_are_listed(tmp_path, prepare, claimed):
    sa1b_tar(tmp_path / "data" / "a.tar", None, None)
    sa1b_tar(tmp_path / "data" / "b.tar", None, claimed)
    rows, summary, _ = prepare("sa1b", tmp_path / "data")
    assert len(rows) == 3 and sum(summary["skipped"].values()) >= 1
    assert "b.tar" in prepare("sa1b", tmp_path / "data", "--strict", status=2)


def test_one_bad_tar_among_several_is_listed(tmp_path, prepare):
    sa1b_tar(tmp_path / "data" / "a.tar", None, None)
    (tmp_path / "data" / "b.tar").write_bytes(b"<html>no tar at all</html>" * 40)
    is_skipped(prepare, "sa1b", tmp_path / "data", "file cannot be read", "b.tar", 2)


def test_one_bad_file_of_entries_among_several_is_listed(tmp_path, prepare):
    tiny = write("mask-perception", tmp_path / "data")
    (tiny.root / "b.jsonl").write_bytes('{"a": 1}\n'.encode("utf-16"))
    (tiny.root / "c.jsonl").symlink_to("c.jsonl")
    rows, summary, entries = prepare("mask-perception", tiny.root)
    assert len(rows) == 2 and summary["skipped"] == {"file cannot be read": 1}
    assert "b.jsonl: got text in UTF-16" in entries[0]["detail"]


def test_one_bad_split_among_several_is_listed(tmp_path, prepare):
    root = tmp_path / "data"
    for split in ("train", "valid"):
        own_coco(root / split)
        (root / split / "annotations.json").rename(root / split / "_annotations.coco.json")
    (root / "valid" / "_annotations.coco.json").write_text('{"images": [')
    is_skipped(prepare, "coco-json", root, "file cannot be read", "valid/_annotations.coco.json", 2)


def test_half_characters_in_a_name_are_listed(tmp_path, prepare):
    label_me(tmp_path / "data")
    label_me(tmp_path / "data", "b", label="cup \ud83d")
    rows, summary, entries = prepare("labelme", tmp_path / "data", "--task", "segment_class")
    assert len(rows) == 1 and summary["skipped"] == {"text is not UTF-8": 1}


def test_a_bad_image_is_listed_by_worker_processes_too(tmp_path, prepare):
    tiny = write("labelme", tmp_path / "data")
    tiny.images[0].write_bytes(bomb(60000))
    rows, summary, _ = prepare("labelme", tiny.root, "--num_workers", 1)
    assert rows and summary["skipped"] == {"image cannot be read": 1}


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_the_check_of_rows_names_truncated_images_too(tmp_path, prepare, himtok, share):
    own_coco(tmp_path / "data")
    assert len(prepare("coco-json", tmp_path / "data", "--task", "box_to_mask")[0]) == 2
    path = tmp_path / "data" / "b.jpg"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    status, _, error = himtok("prepare", "check", tmp_path / "out.jsonl", "--num_workers", 0)
    assert status == 1 and "row 2: images" in error and "cannot be read" in error
