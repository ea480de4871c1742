"""Row files of every form reach training; those without usable rows are refused by their name."""

import codecs
import json

import pytest
from runs import logged, write_rows

FORMS = {
    "byte order mark": lambda lines, rows: codecs.BOM_UTF8 + lines,
    "joined files with marks": lambda lines, rows: (codecs.BOM_UTF8 + lines) * 2,
    "list": lambda lines, rows: json.dumps(rows, indent=1).encode(),
    "list with a byte order mark": lambda lines, rows: codecs.BOM_UTF8 + json.dumps(rows, indent=1).encode(),
    "list behind white space": lambda lines, rows: b"\n  " + json.dumps(rows).encode(),
    "one object": lambda lines, rows: json.dumps(rows[0], indent=1).encode(),
}


@pytest.fixture
def rows(world):
    return [world.segment(world.left), world.segment(world.right)]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_trained_on(train, world, rows, tmp_path, form, streaming):
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    path = tmp_path / "data.json"
    path.write_bytes(FORMS[form](lines, rows))
    assert logged(train(dataset=path, streaming=streaming, per_device_train_batch_size=2), "loss")


EMPTY = {
    "empty.jsonl": (b"", "has no rows"),
    "blank.jsonl": (b"\n\n", "has no rows"),
    "empty_list.json": (b"[]", "has no rows"),
    "only_a_mark.jsonl": (codecs.BOM_UTF8, "has no rows"),
    "utf16.jsonl": ('{"messages": []}'.encode("utf-16"), "got text in UTF-16, expected UTF-8"),
    "rows.txt": (b'{"messages": []}', "got rows in JSON, but ms-swift reads .txt as plain text"),
}


@pytest.mark.parametrize("option", ["dataset", "val_dataset"])
@pytest.mark.parametrize("name", EMPTY)
def test_unusable_files_are_refused_before_a_model_is_loaded(train, world, tmp_path, monkeypatch, name, option):
    from swift.model import ModelLoader

    monkeypatch.setattr(ModelLoader, "load", lambda *_: pytest.fail("a model was loaded"))
    content, message = EMPTY[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: {message}"):
        train(**{option: path})


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_whose_rows_are_all_skipped_is_refused(train, world, tmp_path, streaming):
    path = write_rows(tmp_path / "skipped.jsonl", [{**world.segment(world.left), "masks": 5}] * 3)
    with pytest.raises(ValueError, match=r"skipped\.jsonl: got no row that can be used"):
        train(dataset=path, strict=False, streaming=streaming)


# `datasets` 4.8.0 cannot load a file with a number of more than 64 bits.
HUGE = r"rows\.jsonl: row 2: (masks\[0\]: polygons\[0\] |got .*expected numbers of at most 64 bits|is not JSON)"
NUMBERS = {
    "401 digits": ("1" + "0" * 401, HUGE),
    "5000 digits": ("1" + "0" * 5000, HUGE),
    "26 digits": ("1" + "0" * 25, HUGE),
    "1e308": ("1e308", r"rows\.jsonl: row 2: masks\[0\]: polygons\[0\] reaches .*far outside the image"),
    "1e999": ("1e999", r"rows\.jsonl: row 2: masks\[0\]: polygons\[0\] is .*expected finite numbers"),
    "NaN": ("NaN", r"rows\.jsonl: row 2: masks\[0\]: polygons\[0\] is .*expected finite numbers"),
    "Infinity": ("-Infinity", r"rows\.jsonl: row 2: masks\[0\]: polygons\[0\] is .*expected finite numbers"),
    "true": ("true", r"rows\.jsonl: row 2: masks\[0\]: polygons\[0\] is .*expected finite numbers"),
    "text": ('"5"', r"rows\.jsonl: row 2: masks\[0\]: polygons\[0\] is .*expected finite numbers"),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_a_number_that_nothing_can_draw_is_a_bad_row_of_its_number(train, world, tmp_path, case):
    number, message = NUMBERS[case]
    bad = world.segment({"polygons": [[1, 1, "HERE", 1, 5, 5]], "size": [48, 64]})
    path = tmp_path / "rows.jsonl"
    text = f"{json.dumps(world.segment(world.left))}\n{json.dumps(bad)}\n".replace('"HERE"', number)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        train(dataset=path, per_device_train_batch_size=2)


@pytest.mark.parametrize(
    "broken", ["{oops", '{"messages": [{"role": "user", "content": "Hi"}], "masks": [1e5, 1' + "0" * 401 + "]}"]
)
def test_a_row_that_arrow_cannot_hold_is_named(train, world, tmp_path, broken):
    path = tmp_path / "rows.jsonl"
    mixed = {**world.segment(world.left), "masks": [str(world.mask_file)]}  # paths and RLE: `datasets` parses each row
    path.write_text("".join(json.dumps(row) + "\n" for row in (mixed, world.segment(world.left))) + broken + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl: row 3: (is not JSON|got an integer of \d+ bits)"):
        train(dataset=path)


def test_a_file_of_rows_nested_too_deep_is_named(train, world, tmp_path):
    path = tmp_path / "rows.jsonl"
    row = json.dumps({**world.segment(world.left), "masks": ["HERE"]})
    path.write_text((row.replace('"HERE"', "[" * 500 + "]" * 500) + "\n") * 2)
    with pytest.raises(ValueError, match=r"rows\.jsonl: row 1: (got values nested more|masks\[0\])"):
        train(dataset=path)


@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"lazy_tokenize": False}])
def test_rows_that_are_all_too_long_are_refused_with_their_file(train, world, rows, tmp_path, options):
    path = write_rows(tmp_path / "long.jsonl", rows)
    with pytest.raises(ValueError, match=r"dataset: got \S+long\.jsonl without a row that can be encoded"):
        train(dataset=path, max_length=8, strict=False, truncation_strategy="delete", **options)


def test_rows_whose_images_are_all_missing_are_refused_with_the_reason(train, world, rows, tmp_path):
    path = write_rows(tmp_path / "gone.jsonl", [{**row, "images": ["/nowhere/a.png"]} for row in rows])
    with pytest.raises(ValueError, match=r"gone\.jsonl without a row .*: \S+gone\.jsonl: row \d: images"):
        train(dataset=path, strict=False)
