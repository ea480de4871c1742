"""What `himtok export` cannot write is counted with its reason; bad options are one line."""

import json

import numpy as np
import pytest
from hard_masks import SIZE, ring
from PIL import Image
from result_files import entry, result, usual_results, write_images, write_results

EMPTY = np.zeros(SIZE, bool)


@pytest.fixture
def photo(tmp_path):
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


def export(himtok, tmp_path, rows, *options, to="coco"):
    """(status, the summary as `--json` has it, stderr)"""
    path, summary = write_results(tmp_path / "out.jsonl", rows), tmp_path / "summary.json"
    given = ("--to", to, "--output", tmp_path / "out", "--json", summary, *options)
    status, _, errors = himtok("export", path, *given)
    return status, json.loads(summary.read_text()) if summary.exists() else None, errors


def test_every_result_that_is_not_exported_is_counted_with_its_reason(himtok, tmp_path, photo):
    rows = [
        result("photo.jpg", "Segment the ring.", [entry(ring()), entry(EMPTY, code=2), entry(ring(), 0.1, code=3)]),
        result("photo.jpg", "Segment the cup.", [entry(ring(), complete=False)]),
        result("photo.jpg", "Segment the dog.", []),
        result("missing.jpg", "Segment the ring.", [entry(ring()), entry(ring(), code=2)]),
        result("photo.jpg", "Segment it.", [entry(ring().T)]),
        {**result("photo.jpg", "Segment it.", []), "masks": None, "error": "row 6: no such mask"},
        result("photo.jpg", "Segment it.", [{"size": [60, 80], "counts": "!", "codes": [1]}]),
        {"question": "no result"},
    ]
    status, summary, errors = export(himtok, tmp_path, rows, "--min_score", "0.2")
    assert status == 1
    assert (summary["images"], summary["objects"], summary["without_masks"], summary["cut"]) == (1, 2, 1, 1)
    assert summary["skipped"] == {
        "mask has no pixels": 1,
        "image is missing": 2,
        "mask has another size than the other masks of its image": 1,
        "result has an error instead of an answer": 1,
        "mask cannot be read": 1,
        "line is no result with masks": 1,
    }
    assert summary["unused"] == {"score is below --min_score": 1}
    assert "skipped 2: image is missing; for example line 4: missing.jpg" in errors and "--root" in errors
    skipped = (tmp_path / "out.skipped.jsonl").read_text().splitlines()
    assert len(skipped) == 8 and json.loads(skipped[0])["reason"] == "mask has no pixels"


def test_an_image_without_objects_is_exported(himtok, tmp_path, photo):
    status, summary, _ = export(himtok, tmp_path, [result("photo.jpg", "Segment the dog.", [])], to="yolo")
    assert (status, summary["images"], summary["objects"]) == (0, 1, 0)
    assert (tmp_path / "out/labels/photo.txt").read_text() == ""


def test_nothing_to_export_is_an_error_with_the_most_frequent_reason(himtok, tmp_path):
    rows = [result("nowhere.jpg", "Segment it.", [entry(ring())])]
    status, _, errors = export(himtok, tmp_path, rows)
    assert status == 2 and "nothing to export" in errors and "image is missing" in errors
    assert not (tmp_path / "out").exists()


def test_masks_of_another_size_than_their_image_are_skipped(himtok, tmp_path, photo):
    Image.new("RGB", (9, 9)).save(tmp_path / "small.png")
    rows = [result(name, "Segment it.", [entry(ring())]) for name in ("small.png", "photo.jpg")]
    status, summary, errors = export(himtok, tmp_path, rows)
    assert status == 1 and summary["skipped"] == {"image has another size than its annotation": 1}
    assert "(9, 9)" in errors


def test_repeated_results_are_refused_unless_one_is_chosen(himtok, tmp_path, photo):
    rows = [result("photo.jpg", "Segment it.", [entry(ring(), score)], row=1, dataset="d") for score in (0.5, 0.75)]
    status, _, errors = export(himtok, tmp_path, rows)
    assert status == 2 and "occurs more than once" in errors
    status, summary, _ = export(himtok, tmp_path, rows, "--duplicates", "last")
    assert status == 0 and summary["objects"] == 1
    content = json.loads((tmp_path / "out/annotations/instances_default.json").read_text())
    assert content["annotations"][0]["score"] == 0.75


def test_label_names_all_objects_and_keeps_what_they_were_called(himtok, tmp_path, photo):
    rows = [result("photo.jpg", "Segment the left cup.", [entry(ring())])]
    assert export(himtok, tmp_path, rows, "--label", "cup", to="labelme")[0] == 0
    (shape, *_) = json.loads((tmp_path / "out/photo.json").read_text())["shapes"]
    assert (shape["label"], shape["description"]) == ("cup", "the left cup")


def test_images_can_be_linked_or_left_where_they_are(himtok, tmp_path):
    write_images(tmp_path / "photos")
    rows = usual_results(tmp_path / "photos")
    assert export(himtok, tmp_path, rows, "--images", "link")[0] == 0
    assert (tmp_path / "out/images/a_1.jpg").is_symlink()
    assert not (tmp_path / "out/images/turned.jpg").is_symlink()  # it is stored upright
    status, summary, errors = export(himtok, tmp_path, rows, "--images", "none", "--force")
    assert status == 0 and not (tmp_path / "out/images").exists()
    assert f"the annotations name them from {tmp_path / 'photos'}" in errors and "--images copy" in errors
    content = json.loads((tmp_path / "out/annotations/instances_default.json").read_text())
    assert content["images"][1]["file_name"] == "day2/a.jpg"
    assert (tmp_path / "photos/day2/a.jpg").is_file()


def test_paths_of_another_machine_are_found_below_root(himtok, tmp_path, photo):
    rows = [result(r"C:\data\Photo.JPG", "Segment it.", [entry(ring())])]
    assert export(himtok, tmp_path, rows)[0] == 2
    assert export(himtok, tmp_path, rows, "--root", tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "voc", "--output", "x"), "--to: got 'voc', expected one of coco, labelme, yolo, cvat, png, label-st"),
        (("--to", "coco", "--output", "x.json"), "--output: got 'x.json', expected the name of a folder"),
        (("--to", "yolo", "--shapes", "masks", "--output", "x"), "--shapes: got 'masks', expected polygons for yolo"),
        (
            ("--to", "coco", "--images", "move", "--output", "x"),
            "--images: got 'move', expected one of copy, link",
        ),
        (("--to", "coco", "--output", "x", "--root", "no"), "--root: got 'no', expected a folder"),
    ],
)
def test_bad_options_are_named(himtok, tmp_path, photo, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path / "out.jsonl", [result("photo.jpg", "Segment it.", [entry(ring())])])
    status, _, errors = himtok("export", "out.jsonl", *options)
    assert status == 2 and message in errors and errors.count("\n") == 1


def test_a_folder_with_other_files_is_not_touched(himtok, tmp_path, photo):
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "out/images/mine.txt").write_text("mine")
    rows = [result("photo.jpg", "Segment it.", [entry(ring())])]
    status, _, errors = export(himtok, tmp_path, rows, "--force")
    assert status == 2 and "mine.txt" in errors and (tmp_path / "out/images/mine.txt").read_text() == "mine"
