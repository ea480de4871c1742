"""Rows are read from every form of file by all commands alike, and damaged files are named."""

import codecs
import json

import numpy as np
import pytest
from PIL import Image

from himtok_plugin.data.row_files import has_rows, is_plain, iter_rows, read_row
from himtok_plugin.masks import to_rle

ROWS = [{"text": f"é {i}", "list": [i, {"a": None}], "line": "one\ntwo"} for i in range(3)]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)
LIST = json.dumps(ROWS, ensure_ascii=False, indent=2).encode()
MARK = codecs.BOM_UTF8
FORMS = {
    "lines": LINES,
    "lines without the last end": LINES.rstrip(),
    "lines of Windows": LINES.replace(b"\n", b"\r\n"),
    "lines with a mark": MARK + LINES,
    "list": LIST,
    "list in one line": json.dumps(ROWS).encode(),
    "list of Windows": LIST.replace(b"\n", b"\r\n"),
    "list with a mark": MARK + LIST,
    "list behind white space": b" \n\t" + LIST,
}
PLAIN = {"lines", "lines without the last end", "lines of Windows", "list", "list in one line", "list of Windows"}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_rows(tmp_path, form):
    path = tmp_path / "rows.json"
    path.write_bytes(FORMS[form])
    rows = list(iter_rows(path))
    assert [json.loads(row.line) for row in rows] == ROWS and [row.number for row in rows] == [1, 2, 3]
    assert all(row.line.count(b"\n") == 1 or not row.line.endswith(b"\n") for row in rows)
    with open(path, "rb") as file:
        for row in reversed(rows):
            assert json.loads(read_row(file, row.begin, row.end)) == ROWS[row.number - 1]
    assert has_rows(path) and is_plain(path) == (form in PLAIN)


def test_blank_lines_keep_their_numbers_and_joined_files_lose_their_marks(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + LINES + MARK + LINES)
    rows = [(row.number, json.loads(row.line)) for row in iter_rows(path) if row.line.strip()]
    assert rows == list(zip(range(2, 8), ROWS * 2, strict=True))
    assert not is_plain(path)


def test_one_object_over_several_lines_is_a_row(tmp_path):
    path = tmp_path / "row.json"
    path.write_text(json.dumps(ROWS[0], indent=2))
    assert [json.loads(row.line) for row in iter_rows(path)] == ROWS[:1]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"[]", b" [ ]\n", MARK])
def test_a_file_without_rows_has_none(tmp_path, content):
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert not has_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LIST[:-20], r"rows\.jsonl: is not JSON at byte \d+"),
        (LIST + b"]", r"rows\.jsonl: is not JSON at byte \d+"),
        (LINES.decode().encode("utf-16"), r"rows\.jsonl: got text in UTF-16, expected UTF-8"),
    ],
)
def test_a_damaged_list_and_other_encodings_are_named(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(iter_rows(tmp_path / "rows.jsonl"))


SIZE = (20, 30)


def mask(i):
    found = np.zeros(SIZE, bool)
    found[2 + i : 12, 3:20] = True
    return to_rle(found)


@pytest.fixture
def samples(tmp_path):
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    messages = [{"role": "user", "content": "<image>Segment é."}, {"role": "assistant", "content": "<mask>"}]
    return [{"messages": messages, "images": [str(tmp_path / "a.png")], "masks": [mask(i)]} for i in range(2)]


def written(path, rows, form):
    content = (
        json.dumps(rows, indent=1).encode() if "list" in form else b"\n".join(json.dumps(r).encode() for r in rows)
    )
    path.write_bytes(MARK + content if "mark" in form else content)
    return path


@pytest.mark.parametrize("form", ["lines", "lines with a mark", "list", "list with a mark"])
def test_all_commands_read_every_form(samples, himtok, tmp_path, form):
    path = written(tmp_path / "rows.json", samples, form)
    for options in ((), ("--against", path, "--without_leaks", tmp_path / "rest.jsonl")):
        status, printed, error = himtok("prepare", "check", path, "--num_workers", 0, "--json", "-", *options)
        report = json.loads(printed)
        assert (report["rows"], report["masks"], report["bad_rows"]) == (2, 2, 0), error
    assert report["leaks"][str(path)]["rows"] == 2

    coded = tmp_path / "coded.jsonl"
    status, _, error = himtok("tokenize", path, coded, "--num_workers", 0)
    made = [json.loads(line) for line in coded.read_text(encoding="utf-8").splitlines()]
    assert status == 0 and [{k: v for k, v in row.items() if k != "mask_codes"} for row in made] == samples, error
    assert all(len(row["mask_codes"]) == 1 for row in made)

    (tmp_path / "mix.yaml").write_text(f"parts:\n  - {{rows: {path}, ratio: 1}}\n")
    status, _, error = himtok("prepare", "mix", tmp_path / "mix.yaml", tmp_path / "mix.jsonl")
    mixed = [json.loads(line) for line in (tmp_path / "mix.jsonl").read_text(encoding="utf-8").splitlines()]
    assert status == 0 and sorted(map(json.dumps, mixed)) == sorted(map(json.dumps, samples)), error

    results = [{**row, "target_masks": row["masks"], "response": "<mask>"} for row in samples]
    out = written(tmp_path / "results.json", results, form)
    status, printed, error = himtok("eval", out, "--json", "-")
    assert status == 0 and json.loads(printed)["cIoU"] == 1, error


@pytest.mark.parametrize("command", ["check", "tokenize", "eval"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\n"])
def test_a_file_without_rows_is_an_error_of_every_command(himtok, tmp_path, command, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    arguments = {"check": ("prepare", "check", path), "tokenize": ("tokenize", path, tmp_path / "out.jsonl")}
    status, _, error = himtok(*arguments.get(command, ("eval", path)))
    assert status == 2 and "rows.jsonl" in error and error.count("\n") == 1, error


FAULTS = {
    "turned by 90 degrees": "EXIF orientation 6",
    "deep": "more than 8 bits per channel",
    "box": "objects.bbox[0]",
    "polygon": "expected finite numbers",
}


@pytest.mark.parametrize("case", FAULTS)
def test_check_and_tokenize_name_the_same_faults(samples, himtok, tmp_path, case):
    row, picture = samples[0], tmp_path / "a.png"
    if case == "turned by 90 degrees":
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(picture, exif=exif)
    elif case == "deep":
        Image.fromarray(np.zeros(SIZE, np.uint16)).save(picture)
    elif case == "box":
        row["messages"][0]["content"] += "<bbox>"
        row["objects"] = {"ref": [], "bbox": [[1, 2, 10**400, 9]]}
    else:
        row["masks"] = [{"polygons": [[1, 1, 5, 1, 5, 10**400]], "size": list(SIZE)}]
    path = written(tmp_path / "rows.jsonl", [row], "lines")
    status, _, error = himtok("prepare", "check", path, "--num_workers", 0)
    assert status == 1 and FAULTS[case] in error, error
    status, _, error = himtok("tokenize", path, tmp_path / "out.jsonl", "--num_workers", 0)
    assert FAULTS[case] in (tmp_path / "out.jsonl.rejects.jsonl").read_text()


def test_a_row_in_another_encoding_is_named_for_what_it_is(samples, himtok, tmp_path):
    samples[0]["messages"][0]["content"] += " täglich"
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in samples).encode("latin-1"))
    status, _, error = himtok("prepare", "check", path, "--num_workers", 0)
    assert status == 1 and "row 1: not JSON: got byte 0xe" in error and "iconv -f LATIN1 -t UTF-8" in error


def test_check_counts_turned_images_and_says_which_frame_masks_belong_to(samples, himtok, tmp_path):
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png", exif=exif)
    path = written(tmp_path / "rows.jsonl", samples, "lines")
    status, printed, error = himtok("prepare", "check", path, "--num_workers", 0)
    assert status == 0 and "turned" in printed
    assert "turned upright by the EXIF orientation: 1 image;" in error and "upright image" in error
