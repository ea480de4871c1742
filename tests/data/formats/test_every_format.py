"""For every dataset of the catalog: its samples are valid, and the same from other processes; damaged files are skipped
and counted, or refused in one line, as always with `--strict`."""

import pickle

import numpy as np
import pytest
from on_disk import write_image
from PIL import Image
from tiny_datasets import SIZE, THING, write

from himtok_plugin.data import prepare as prepare_module
from himtok_plugin.data.catalog import FORMATS
from himtok_plugin.masks import load_mask
from himtok_plugin.words.plurals import pluralize

MISSING, UNREADABLE, WRONG = "image is missing", "image cannot be read", "image has another size than its annotation"
TURNED = "annotation does not belong to the upright image (EXIF orientation)"
WITHOUT_IMAGES = {"sa1b"}  # its images are inside tar files and are not read
# No image sizes in the annotations, or masks of relative coordinates.
OF_ANY_SIZE = {"pope", "vqav2", "yolo", "reasonseg"}
# The only size in these is that of the masks.
OF_MAPS = {"ade20k", "voc", "pascal-context", "cityscapes", "png", "grandf", "mask-perception"}
# Their class names are constants of the reader, or there are none.
WITHOUT_TEXT = {"voc", "pascal-context", "cityscapes", "sa1b"}
LISTS = (".txt", ".yaml")  # a truncated list is still a valid one


@pytest.fixture(params=FORMATS)
def dataset(request, tmp_path):
    """(name, files)"""
    return request.param, write(request.param, tmp_path / "data")


def test_samples_are_valid(dataset, prepare, himtok, tmp_path):
    name, tiny = dataset
    rows, summary, _ = prepare(name, tiny.root)
    assert rows and summary["images"] == 2 and summary["skipped"] == {}
    masks = [load_mask(mask) for row in rows for mask in row["masks"]]
    assert all(mask.shape == SIZE and mask.any() for mask in masks)
    assert bool(masks) == (
        FORMATS[name].tasks not in (("ground",), ("converse",)) or name in ("grandf", "mask-perception")
    )
    status, _, error = himtok("prepare", "check", tmp_path / "out.jsonl", "--num_workers", 0)
    assert status == 0, error
    texts = [message["content"] for row in rows for message in row.get("messages", ())]
    assert name in WITHOUT_TEXT or any(THING in text or pluralize(THING) in text for text in texts)


def test_readers_and_samples_can_be_pickled(dataset, prepare, monkeypatch):
    """Worker processes get and return pickles; the processes themselves are tested with one dataset."""
    name, tiny = dataset
    rows = prepare(name, tiny.root)[0]

    def map_pickled(function, items, workers):
        function = pickle.loads(pickle.dumps(function))
        for item in items:
            yield pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(item)))))

    monkeypatch.setattr(prepare_module, "map_ordered", map_pickled)
    assert prepare(name, tiny.root)[0] == rows
    assert len(prepare(name, tiny.root, "--limit", 1)[0]) == 1


@pytest.mark.parametrize("damage", ["missing", "unreadable", "of another size"])
def test_a_bad_image_is_counted_and_the_other_one_is_used(dataset, prepare, damage):
    name, tiny = dataset
    if name in WITHOUT_IMAGES or (damage == "of another size" and name in OF_ANY_SIZE):
        return
    before = len(prepare(name, tiny.root)[0])
    image = tiny.images[0]
    if damage == "missing":
        image.unlink()
        reason = "id is not in the file" if name == "png" else MISSING  # its images are found by listing the folder
    elif damage == "unreadable":
        image.write_bytes(b"no image at all")
        reason = UNREADABLE
    else:
        Image.fromarray(np.zeros((9, 11, 3), np.uint8)).save(image)
        reason = "mask cannot be read" if name in OF_MAPS else WRONG
    rows, summary, entries = prepare(name, tiny.root)
    assert set(summary["skipped"]) == {reason} and 0 < len(rows) < before
    assert all(entry["detail"] for entry in entries)
    assert reason in prepare(name, tiny.root, "--strict", status=2)


def test_turned_images_are_used_upright_and_annotations_of_their_stored_pixels_are_counted(dataset, prepare):
    name, tiny = dataset
    if name in WITHOUT_IMAGES:
        return
    rows = prepare(name, tiny.root)[0]
    for orientation, stored in ((1, SIZE), (0, SIZE), (2, SIZE), (3, SIZE), (6, SIZE[::-1])):
        write_image(tiny.images[0], stored, orientation=orientation)
        found, summary, _ = prepare(name, tiny.root)
        assert found == rows and not summary["skipped"]
    if name in OF_ANY_SIZE:
        return
    write_image(tiny.images[0], SIZE, orientation=6)
    found, summary, _ = prepare(name, tiny.root)
    assert set(summary["skipped"]) == {"mask cannot be read" if name in OF_MAPS else TURNED}
    assert 0 < len(found) < len(rows)


def test_images_that_would_turn_white_are_counted(dataset, prepare):
    name, tiny = dataset
    if name in WITHOUT_IMAGES:
        return
    rows = prepare(name, tiny.root)[0]
    Image.fromarray(np.full(SIZE, 4000, np.uint16)).save(tiny.images[0], format="PNG")
    found, summary, entries = prepare(name, tiny.root)
    assert set(summary["skipped"]) == {"image has more than 8 bits per channel"} and 0 < len(found) < len(rows)
    assert "I;16" in entries[0]["detail"]


UNUSABLE_NUMBERS = [
    "1" + "0" * 400,
    "-1" + "0" * 5000,
    "1e308",
    "1e999",
    "NaN",
    "-Infinity",
    "true",
    '"5"',
    "null",
    "[[]]",
]


def test_a_number_that_nothing_can_draw_is_skipped_with_its_annotation(dataset, himtok, tmp_path):
    name, tiny = dataset
    for path in tiny.annotations:
        whole = path.read_bytes()
        for old in (b"40.0", b"44.0"):  # coordinates of a polygon
            if path.suffix == ".tar" or old not in whole:
                continue
            for number in UNUSABLE_NUMBERS:
                path.write_bytes(whole.replace(old, number.encode(), 1))
                out = tmp_path / "out.jsonl"
                status, _, error = himtok("prepare", name, "--root", tiny.root, out, "--num_workers", 0)
                assert (status == 0 and "skipped 1" in error) or (status == 2 and error.startswith("error: ")), error
        path.write_bytes(whole)


@pytest.mark.parametrize("share", [0.45, 0.97])
def test_truncated_files_are_never_read_as_if_they_were_complete(dataset, himtok, tmp_path, share):
    name, tiny = dataset
    for number, path in enumerate(tiny.annotations):
        if path.suffix in LISTS:
            continue
        whole = path.read_bytes()
        used = len(whole.rstrip(b"\0"))  # tar files end in zeros
        path.write_bytes(
            whole[: int(used * (0.75 if path.suffix == ".png" else share))]
        )  # PNG's last bytes hold nothing
        out = tmp_path / f"{number}.jsonl"
        arguments = ("prepare", name, "--root", tiny.root, out, "--num_workers", 0)
        status, _, error = himtok(*arguments)
        assert status == 2 or "skipped " in error, path
        status, _, error = himtok(*arguments, "--strict")
        assert status == 2 and error.startswith("error: ") and error.count("\n") == 1, path
        path.write_bytes(whole)


def test_text_that_is_not_utf8_is_in_no_sample(dataset, prepare, himtok, tmp_path):
    name, tiny = dataset
    if name in WITHOUT_TEXT:
        return
    for number, path in enumerate(tiny.annotations):
        whole = path.read_bytes()
        if THING.encode() not in whole:
            continue
        damaged = whole.replace(THING.encode(), b"th\x81ngy")
        path.write_bytes(damaged)
        out = tmp_path / f"{number}.jsonl"
        arguments = ("prepare", name, "--root", tiny.root, out, "--num_workers", 0)
        status, _, error = himtok(*arguments)
        assert status == 2 or "skipped " in error, path
        if status == 0:
            assert "ngy" not in out.read_text(encoding="utf-8").replace(THING, ""), path
        assert himtok(*arguments, "--strict")[0] == 2, path
        path.write_bytes(whole)
