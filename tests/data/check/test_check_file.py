"""`himtok prepare check`: every fault is found, leaks are counted."""

import json

import numpy as np
import pytest
from on_disk import blob, read_rows, write_image

from himtok_plugin.data.check.findings import image_key
from himtok_plugin.masks import to_rle

SIZE = (48, 64)


@pytest.fixture
def good(tmp_path):
    def row(number=1, folder="train2017", **changes):
        image = tmp_path / folder / f"{number:012}.jpg"
        if not image.exists():
            write_image(image, SIZE, number)
        fields = {
            "messages": [
                {"role": "user", "content": f"<image>Segment thing {number}."},
                {"role": "assistant", "content": "It is <mask>, at <bbox>."},
            ],
            "images": [str(image)],
            "masks": [to_rle(blob(seed=1))],
            "objects": {"ref": [], "bbox": [[1.0, 2.0, 30.0, 40.0]]},
            "source": {"dataset": "d", "split": "train"},
        }
        fields = {**fields, **changes}
        return {key: value for key, value in fields.items() if value is not None}

    return row


@pytest.fixture
def check(tmp_path, himtok):
    def run(rows, *arguments, status=0):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
        workers = () if "--num_workers" in arguments else ("--num_workers", 0)
        code, printed, error = himtok("prepare", "check", path, "--json", "-", *workers, *arguments)
        assert code == status, (printed, error)
        return error if status == 2 else json.loads(printed)

    return run


def test_good_samples_of_every_form_pass(good, check):
    conversations = [
        {"from": "human", "value": "<image>\nWhere?"},
        {"from": "gpt", "value": "<|mt_start|>" + "<|mt_0|>" * 32 + "<|mt_end|>"},
    ]
    plain = good(2)
    rows = [
        good(),
        {"masks": [to_rle(blob())]},
        {"image": plain["images"][0], "mask": plain["masks"][0], "conversations": conversations},
        good(3, masks=[], objects=None, messages=[
            {"role": "user", "content": "Any?"}, {"role": "assistant", "content": "There is no dog."}]),
        good(4, ignore=[to_rle(blob(seed=2))], mask_codes=[[1, 2]]),
        good(messages=None, history=[["<image>Where?", "At <bbox>."]], question="Its mask?", answer="It is <mask>."),
    ]  # fmt: skip
    report = check(rows)
    assert report["bad_rows"] == 0 and not report["faults"]
    assert {k: report[k] for k in ("rows", "masks", "boxes", "empty", "images")} == {
        "rows": 6, "masks": 5, "boxes": 3, "empty": 1, "images": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "changes", "what"),
    [
        ("placeholders", {"masks": []}, "messages hold 1 <mask>, masks holds 0"),
        ("placeholders", {"objects": None}, "messages hold 1 <bbox>, objects.bbox holds 0"),
        ("placeholders", {"images": []}, "messages hold 1 <image>, images holds 0"),
        ("masks", {"masks": [to_rle(np.ones((9, 9), bool))]}, "expected (48, 64)"),
        ("masks", {"masks": [to_rle(np.zeros(SIZE, bool))]}, "masks[0] has no pixels"),
        ("masks", {"masks": [{"size": [48, 64], "counts": "?"}]}, "masks[0]: counts"),
        ("masks", {"masks": ["no.png"]}, "'no.png' cannot be read"),
        ("masks", {"masks": [{"polygons": [[1, 2]], "size": [48, 64]}]}, "masks[0]: polygons[0]"),
        ("masks", {"ignore": [to_rle(np.zeros(SIZE, bool))]}, "ignore[0] has no pixels"),
        ("images", {"images": ["no.jpg"]}, "images[0] 'no.jpg' cannot be read"),
        ("boxes", {"objects": {"ref": [], "bbox": [[9, 9, 3, 12]]}}, "expected x1 < x2"),
        ("boxes", {"objects": {"ref": [], "bbox": [[0, 0, 90, 12]]}}, "extends beyond its image"),
        ("boxes", {"objects": {"ref": [], "bbox": [["a", 0, 9, 12]]}}, "expected x1 < x2"),
        ("boxes", {"objects": []}, "expected lists ref and bbox"),
        ("messages", {"messages": [{"role": "user", "content": "<image><mask><bbox>"}]}, "no message of the assistant"),
        ("messages", {"messages": [{"role": "dog", "content": "a"}]}, "expected a role and its content"),
        ("messages", {"messages": "a"}, "expected a list"),
        ("codes", {"mask_codes": []}, "expected one list for each of 1 masks"),
    ],
)
def test_a_fault_is_found_and_named(good, check, kind, changes, what):
    report = check([good(), good(2, **changes)], status=1)
    assert report["bad_rows"] == 1 and kind in report["faults"]
    assert any(number == 2 and k == kind and what in text for number, k, text in report["examples"])
    error = check([good(), good(2, **changes)], "--strict", status=2)
    assert "row 2" in error


@pytest.mark.parametrize("line", ["{", "[]", "5", '{"masks": 5}', "{}"])
def test_broken_lines_are_found(good, check, line):
    assert check([good(), line], status=1)["bad_rows"] == 1


def test_a_file_without_rows_is_refused(check):
    assert "has no rows" in check([""], status=2)


def test_repeated_samples_are_counted(good, check):
    assert check([good(), good(2), good()], status=1)["repeated"] == 1


def test_images_of_coco_are_identified_by_their_id():
    names = ("train2014/COCO_train2014_000000581857_16.jpg", "/x/000000581857.jpg", "COCO_val2014_000000581857.png")
    assert len({image_key(name) for name in names}) == 1
    assert image_key("a/1.jpg") != image_key("b/1.jpg")


def test_leaks_between_training_and_evaluation_are_counted_and_can_be_left_out(good, check, tmp_path):
    evaluation = tmp_path / "val.jsonl"
    names = [tmp_path / "train2014" / f"COCO_train2014_{number:012}.jpg" for number in (2, 3, 9)]
    for name in names:
        write_image(name, SIZE)
    evaluation.write_text("\n".join(json.dumps(good(images=[str(name)])) for name in names))
    kept = tmp_path / "kept.jsonl"
    asked = good(2, messages=[{"role": "user", "content": "<mask><bbox>"}, {"role": "assistant", "content": "x"}])
    rows = [good(1), good(2), asked, good(3), good(4)]
    report = check(rows, "--against", evaluation, "--without_leaks", kept, status=1)
    assert report["leaks"] == {str(evaluation): {"images": 2, "rows": 3}}
    assert [row["messages"][0]["content"] for row in read_rows(kept)] == [
        "<image>Segment thing 1.", "<image>Segment thing 4.",
    ]  # fmt: skip
    assert check(read_rows(kept), "--against", evaluation)["leaks"] == {str(evaluation): {"images": 0, "rows": 0}}


def test_leaks_within_a_file_of_several_splits_are_counted(good, check):
    val = good(2, source={"dataset": "refcoco", "split": "val"})
    report = check([good(1), good(2), val], status=1)
    assert report["leaks"] == {"refcoco:val": {"images": 1, "rows": 1}}


def test_the_result_does_not_depend_on_the_number_of_processes(good, check):
    rows = [good(n, **({"masks": []} if n % 7 == 0 else {})) for n in range(1, 150)]
    assert check(rows, status=1) == check(rows, "--num_workers", 2, status=1)


def test_relative_paths_start_from_the_root(good, check, tmp_path):
    row = good(1)
    row["images"] = ["train2017/000000000001.jpg"]
    assert check([row], "--root", tmp_path)["bad_rows"] == 0
    assert check([row], status=1)["bad_rows"] == 1
