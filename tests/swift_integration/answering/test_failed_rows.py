"""`swift infer` on rows that cannot be read: each gets a result with an error, and all others are answered."""

import re
import shutil

import pytest
import torch
from runs import infer, read_rows, write_rows

from himtok_plugin.swift_integration.answering.failed_answers import FailureCount, infer_apart
from himtok_plugin.swift_integration.samples.failed_rows import describe_error

FAULTS = {
    "missing image": "No such file",
    "truncated image": "truncated",
    "text as image": "cannot identify image file",
    "missing mask in question": r"masks\[0\]",
    "mask of another size": "size",
    "masks missing": "messages hold 1 <mask>, masks holds 0",
    "box of three numbers": "box",
    "no messages": "messages",
    "masks is a number": "masks",
}


@pytest.fixture(scope="module")
def rows(world, tmp_path_factory):
    """A good row, then each fault followed by a good row: (file, faults by row number)."""
    root = tmp_path_factory.mktemp("failing")
    content = world.image.read_bytes()
    (root / "truncated.png").write_bytes(content[: len(content) // 2])
    (root / "text.png").write_text("<html>not found</html>")
    question = "<image>Segment what is beside <mask>."
    bad = {
        "missing image": {**world.segment(world.left), "images": [str(root / "none.png")]},
        "truncated image": {**world.segment(world.left), "images": [str(root / "truncated.png")]},
        "text as image": {**world.segment(world.left), "images": [str(root / "text.png")]},
        "missing mask in question": world.row(question, "<mask>", masks=["none.png", world.left]),
        "mask of another size": world.row(question, "<mask>", masks=[world.left.T.copy(), world.left]),
        "masks missing": world.row(question, "None."),
        "box of three numbers": world.segment(world.left, objects={"ref": [], "bbox": [[1, 2, 3]]}),
        "no messages": {"images": [str(world.image)]},
        "masks is a number": {**world.segment(world.left), "masks": 7},
    }
    assert bad.keys() == FAULTS.keys()
    listed, faults = [world.segment(world.left)], {}
    for name, row in bad.items():
        faults[len(listed) + 1] = name
        listed += [row, world.segment(world.right)]
    return write_rows(root / "rows.jsonl", listed), faults


def run(rows, out, **options):
    """Run `infer` and return (results, message at the end); None without one."""
    try:
        return infer(rows, out, **{"strict": False, "max_new_tokens": 12, **options}), None
    except SystemExit as end:
        return read_rows(out), end.code


@pytest.mark.parametrize(
    "options",
    [{"max_batch_size": 1}, {"max_batch_size": 4}, {"max_batch_size": 4, "write_batch_size": 3}, {"stream": True}],
    ids=str,
)
def test_rows_that_cannot_be_read_become_results_with_an_error(stage_two, rows, tmp_path, options):
    file, faults = rows
    out = tmp_path / "out.jsonl"
    results, message = run(file, out, model=stage_two[1], **options)
    assert [row["row"] for row in results] == list(range(1, 2 + 2 * len(faults)))
    assert {row["row"]: faults.get(row["row"]) for row in results if "error" in row} == faults
    for row in results:
        if row["row"] in faults:
            assert re.fullmatch(f"{file}: row {row['row']}: .*{FAULTS[faults[row['row']]]}.*", row["error"])
            assert "masks" not in row and row["response"] == ""
        else:
            assert row["response"] and "masks" in row
    assert message.startswith(f"error: {len(faults)} of {len(results)} rows could not be answered; their results in")
    assert f"The first: {file}: row 2: " in message and "\n" not in message


def test_rows_with_an_error_are_answered_when_the_run_is_resumed(stage_two, world, tmp_path):
    """Also rows without masks, and a row whose result was cut off when the run was killed."""
    image, out = tmp_path / "image.png", tmp_path / "out.jsonl"
    image.write_bytes(world.image.read_bytes()[:99])
    question = [{"role": "user", "content": "<image>Segment it."}]
    good = {"messages": question, "images": [str(world.image)]}
    file = write_rows(tmp_path / "rows.jsonl", [good, {**good, "images": [str(image)]}, good])
    first, message = run(file, out, model=stage_two[1], max_batch_size=4)
    assert message.startswith("error: 1 of 3 rows") and [row["row"] for row in first if "error" in row] == [2]
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:50])
    shutil.copy(world.image, image)
    second, message = run(file, out, model=stage_two[1], resume_result=True)
    assert message is None and [row["row"] for row in second] == [1, 2, 3]
    assert not any("error" in row for row in second) and second[2]["response"] == first[2]["response"]


def test_prompt_that_is_too_long_fails_alone_in_its_batch(stage_two, world, tmp_path):
    rows = [world.segment(world.left) for _ in range(4)]
    rows[2]["messages"][0]["content"] += " large" * 3000
    results, message = run(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl", model=stage_two[1])
    assert [("error" in row, bool(row["response"])) for row in results] == [(False, True)] * 2 + [(True, False)] + [
        (False, True)
    ]
    assert re.search("row 3: .*length", results[2]["error"]) and message.startswith("error: 1 of 4 rows")


def test_a_run_of_failures_only_ends_with_its_results_written(stage_two, world, tmp_path):
    rows = [{**world.segment(world.left), "images": ["none.png"]} for _ in range(2)]
    results, message = run(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl", model=stage_two[1])
    assert all("row" in row and "error" in row for row in results) and message.startswith("error: 2 of 2 rows")


def test_a_bad_request_does_not_fail_others():
    asked = []

    def ask(requests):
        asked.append(len(requests))
        if 5 in requests:
            raise ValueError("five")
        return [request * 2 for request in requests]

    answers = infer_apart(ask, range(16))
    assert [answer for i, answer in enumerate(answers) if i != 5] == [i * 2 for i in range(16) if i != 5]
    assert str(answers[5]) == "five" and len(asked) == 9
    assert infer_apart(ask, []) == []


def test_errors_of_the_device_end_the_run():
    def ask(requests):
        raise torch.AcceleratorError("device-side assert")

    with pytest.raises(torch.AcceleratorError):
        infer_apart(ask, range(4))


def test_errors_are_described_in_one_line_that_begins_with_the_row():
    assert describe_error("row 3", ValueError("row 3: images:\n none")) == "row 3: images: none"
    assert describe_error("row 3", ValueError("bad")) == "row 3: bad"
    assert describe_error("row 3", KeyError("bbox")) == "row 3: KeyError: 'bbox'"
    assert describe_error("row 3", ValueError()) == "row 3: ValueError: "


def test_run_without_failures_has_no_exit_status():
    count = FailureCount()
    count.add(None)
    assert count.check("out.jsonl") is None


def test_only_the_first_process_ends_with_a_status_and_counts_the_rows_of_all(monkeypatch):
    """torchrun ends all processes as soon as one has failed, perhaps before the first one has printed its line."""

    def gather(parts, own):
        parts[:] = [(3, []), own]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    count = FailureCount()
    count.add("row 4: no image")
    for rank in (1, 0):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        if rank:
            assert count.check("out.jsonl") is None
    with pytest.raises(SystemExit, match="error: 1 of 4 rows could not be answered; .* The first: row 4: no image"):
        count.check("out.jsonl")
