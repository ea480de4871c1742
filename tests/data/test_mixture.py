"""Mixtures: ratios, repeated parts, order, faults in the YAML."""

import json
from collections import Counter

import pytest
from on_disk import coco_annotation, coco_file, polygon, read_rows, write_image, write_json


@pytest.fixture
def parts(tmp_path):
    """A dataset of 40 samples, and a file of 10."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 64} for i in range(40)]
    annotations = [coco_annotation(i, i, [polygon(i)]) for i in range(40)]
    write_json(tmp_path / "own" / "annotations.json", coco_file(images, annotations))
    for i in range(40):
        write_image(tmp_path / "own" / f"{i}.png", seed=i)
    lines = [json.dumps({"messages": [], "number": i}) for i in range(10)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def mix(parts, himtok):
    def run(text, *arguments):
        (parts / "mix.yaml").write_text(text)
        out = parts / "mixed.jsonl"
        code, printed, error = himtok(
            "prepare", "mix", parts / "mix.yaml", out, "--json", "-", "--num_workers", 0, *arguments
        )
        assert list(parts.glob(".mixed*")) == []
        if code:
            assert code == 2 and error.count("\n") == 1
            return error
        return read_rows(out), json.loads(printed)

    return run


DATASET = "{dataset: coco-json, root: own, tasks: {box_to_mask: 1}, ratio: %s}"


def kinds(rows):
    return Counter("mine" if "number" in row else "dataset" for row in rows)


def test_ratios_hold_and_no_sample_is_repeated(mix):
    rows, summary = mix(f"rows: 20\nparts: [{DATASET % 3}, {{rows: mine.jsonl, ratio: 1}}]")
    assert kinds(rows) == {"dataset": 15, "mine": 5} and summary["rows"] == 20
    assert len({json.dumps(row) for row in rows}) == 20
    assert [part["at_hand"] for part in summary["parts"]] == [40, 10]


def test_without_a_number_of_rows_no_part_is_repeated(mix):
    rows, _ = mix(f"parts: [{DATASET % 1}, {{rows: mine.jsonl, ratio: 1}}]")
    assert kinds(rows) == {"dataset": 10, "mine": 10}


def test_a_part_may_be_repeated(mix):
    rows, _ = mix(f"rows: 50\nparts: [{DATASET % 1}, {{rows: mine.jsonl, ratio: 1, repeat: true}}]")
    assert kinds(rows) == {"dataset": 25, "mine": 25}
    assert set(Counter(row["number"] for row in rows if "number" in row).values()) == {2, 3}


def test_the_seed_decides_the_order(mix):
    text = f"parts: [{DATASET % 1}, {{rows: mine.jsonl}}]"
    first, again, other = mix(text)[0], mix(text)[0], mix(text, "--seed", 5)[0]
    assert first == again != other
    assert {"number" in row for row in first[:2]} == {True, False}  # one of each part first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parts: []", "parts is []"),
        ("parts: [{}]", "got nothing, expected either a dataset or rows"),
        ("parts: [{rows: no.jsonl}]", "which is no file"),
        ("parts: [{rows: mine.jsonl, split: val}]", "got split beside rows"),
        ("parts: [{dataset: coco-json}]", "has no root"),
        ("parts: [{dataset: cocoa, root: own}]", "dataset: got 'cocoa', expected one of refcoco"),
        ("parts: [{dataset: coco-json, root: own, tasks: {segmnt: 1}}]", "task: got 'segmnt'"),
        ("parts: [{dataset: coco-json, root: own, tasks: {segment: 2}}]", "got the share 2"),
        ("parts: [{rows: mine.jsonl, ratio: 0}]", "ratio: got 0"),
        ("parts: [{rows: mine.jsonl, ratio: true}]", "ratio: got True, expected int or float"),
        ("parts: [{rows: mine.jsonl, colour: red}]", "got the field 'colour'"),
        ("seed: -1\nparts: [{rows: mine.jsonl}]", "seed: got -1, expected at least 0"),
        ("rows: 0\nparts: [{rows: mine.jsonl}]", "rows: got 0"),
        ("rows: 11\nparts: [{rows: mine.jsonl}]", "got 10 rows, expected 11"),
        ("parts: [{rows: mine.jsonl, repeat: true}]", "expected a number of rows"),
        ("parts: [{dataset: coco-json, root: own}]", "part coco-json:all: coco-json: got no rows of 40 images"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_mixtures_are_refused(mix, text, message):
    if "got no rows" in message:
        text = text.replace("root: own", "root: own, tasks: {segment: 1}")
    assert message in mix(text)
