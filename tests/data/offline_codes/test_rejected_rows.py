"""`himtok tokenize` with bad rows: they are rejected, or stop a strict run."""

import pytest
from coded_rows import (
    interrupt,
    many_rows,
    random_masks,
    read_rows,
    row_of,
    save_image,
    save_mask,
    with_codes,
    write_rows,
)
from tiny_models import tiny_model

from himtok_plugin.data.offline_codes import write_codes
from himtok_plugin.jobs.resumable_output import REJECTED
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import to_rle


@pytest.fixture
def bad_rows(tmp_path):
    """(row, its error) for every fault."""
    mask = random_masks(1)[0]
    image, good = save_image(tmp_path / "image.png", (9, 9)), to_rle(mask)
    (tmp_path / "text.png").write_text("no image")
    nowhere, text = str(tmp_path / "nope.png"), str(tmp_path / "text.png")
    question = {"role": "user", "content": "<mask> and <mask>?"}
    return [
        ("{broken", "row {}: is not JSON ("),
        ("[1, 2]", "row {}: is [1, 2]: expected a JSON object"),
        (row_of(good, "missing.png"), "row {}: masks[1]: mask 'missing.png' cannot be read"),
        (row_of({"size": [24, 20]}), "row {}: masks[0]: mask has the keys ['size']"),
        (row_of(7), "row {}: masks[0]: mask is 7: expected a path"),
        ({"masks": 7}, "row {}: masks: got 7, expected a list"),
        (row_of(good, images=[image]), "row {}: masks[0]: mask has size (h, w) = (24, 20): expected (9, 9)"),
        ({"image": image, "mask": good}, "row {}: masks[0]: mask has size (h, w) = (24, 20): expected (9, 9)"),
        (row_of(good, images=[nowhere]), f"row {{}}: images[0] {nowhere!r}: no such file"),
        ({"image": {"path": text}, "mask": good}, f"row {{}}: images[0] {text!r}: not a readable image"),
        ({**row_of(good, good), "masks": [good]}, "row {}: messages hold 2 <mask>, masks holds 1: expected one mask"),
        ({**row_of(good), "masks": [good, good]}, "row {}: messages hold 1 <mask>, masks holds 2"),
        ({"messages": row_of(good)["messages"]}, "row {}: messages hold 1 <mask>, masks holds 0"),
        ({"messages": [question], "masks": [good]}, "row {}: messages hold 2 <mask>, masks holds 1"),
        (
            {"query": "Where?", "response": "<mask><mask>", "masks": good},
            "row {}: messages hold 2 <mask>, masks holds 1",
        ),
        ({**reference_row(2), "mask": good}, "row {}: messages hold 2 <mask>, masks holds 1"),
    ]


def reference_row(placeholders):
    """Text as in the authors' rows: 32 zeros where a mask belongs."""
    answer = codes_to_text([0] * 32) * placeholders
    return {"conversations": [{"from": "human", "value": "<image>\nWhere?"}, {"from": "gpt", "value": answer}]}


def test_bad_rows_are_rejected_with_number_error_and_text(himtok, folder, bad_rows, tmp_path):
    good = row_of(to_rle(random_masks(1)[0]))
    rows = [good] + [row for row, _ in bad_rows] + ["", good]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0)
    for _ in range(2):  # a finished run reports its rejected rows again
        status, printed, err = himtok(*arguments)
        assert status == 1 and "rejected" in printed
        assert f"rejected rows: {len(bad_rows)}, see {out}.rejects.jsonl for the errors" in err
    assert [row["masks"] for row in read_rows(out)] == [good["masks"]] * 2
    rejects = read_rows(tmp_path / "out.jsonl.rejects.jsonl")
    assert [reject["row"] for reject in rejects] == list(range(2, 2 + len(bad_rows)))
    lines = source.read_text(encoding="utf-8").splitlines()
    assert [reject["line"] for reject in rejects] == lines[1:-2]
    for reject, (_, message) in zip(rejects, bad_rows, strict=True):
        assert reject["error"].startswith(message.format(reject["row"])), reject["error"]


def test_rows_whose_texts_and_images_cannot_contradict_their_masks_pass(tokenizer, tmp_path):
    """Rows for stage 1 and for reinforcement learning, and images that are not files."""
    good, ask = to_rle(random_masks(1)[0]), {"role": "user", "content": "<image>Where?"}
    given = {"role": "user", "content": [{"type": "text", "text": "Beside <mask>?"}]}
    answered = {"role": "assistant", "content": "There."}
    rows = [
        {"masks": [good]},
        {"messages": [ask, answered], "masks": [good]},
        {"messages": [ask], "masks": [good]},
        {"messages": [given], "masks": [good, good]},
        {"messages": [given, answered], "masks": [good], "answer": "<mask>", "rejected_response": "<mask>"},
        {"history": [["Where is <mask>?", "Here."]], "query": "And?", "response": "<mask>", "masks": [good, good]},
        {**reference_row(2), "mask": [good, good]},
        row_of(good, images=["https://nowhere/i.png"]),
        row_of(good, images=["data:image/png;base64,iVBORw0KGgo="]),
        row_of(good, images=["iVBORw0KGgo" * 200]),
        row_of(good, images=[{"bytes": "iVBORw0KGgo=", "path": "nope.png"}]),
        row_of(images=["nope.png"]),
    ]
    summary = write_codes(write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", tokenizer, strict=True)
    assert (summary.rows, summary.rejected) == (len(rows), 0)


def test_no_rejects_file_without_bad_rows(himtok, folder, tmp_path):
    good = row_of(to_rle(random_masks(1)[0]))
    source, out = write_rows(tmp_path / "in.jsonl", [good, "oops"]), tmp_path / "out.jsonl"
    rejects = tmp_path / "out.jsonl.rejects.jsonl"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0)
    assert himtok(*arguments)[0] == 1 and rejects.exists()
    write_rows(source, [good])
    assert himtok(*arguments, "--overwrite")[0] == 0 and not rejects.exists()


def test_a_strict_run_stops_at_the_first_bad_row_and_resumes_when_it_is_fixed(himtok, folder, tmp_path):
    good = row_of(to_rle(random_masks(1)[0]))
    missing = tmp_path / "late.png"
    source = write_rows(tmp_path / "in.jsonl", [good, good, row_of(str(missing)), good, "oops"])
    out, part = tmp_path / "out.jsonl", tmp_path / "out.jsonl.rank0-of-1.part"
    arguments = ("tokenize", source, out, "--mask_tokenizer", folder, "--num_workers", 0, "--strict")
    status, printed, err = himtok(*arguments)
    assert status == 2 and not printed and err.count("\n") == 1
    assert err.startswith(f"error: {source}: row 3: masks[0]: mask '{missing}' cannot be read")
    assert len(read_rows(part)) == 2 and not out.exists()
    save_mask(missing, random_masks(1)[0])
    status, _, err = himtok(*arguments)
    assert status == 2 and f"{source}: row 5: is not JSON" in err and len(read_rows(part)) == 4
    assert himtok(*arguments[:-1])[0] == 1 and len(read_rows(out)) == 4


def test_a_strict_run_reads_rows_again_that_an_earlier_run_rejected(tokenizer, tmp_path):
    rows = many_rows()
    missing = tmp_path / "late.png"
    rows[10] = row_of(str(missing))
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    interrupt(source, out, tokenizer)
    assert (tmp_path / "out.jsonl.rank0-of-1.part").read_bytes().splitlines()[10].startswith(REJECTED)
    save_mask(missing, random_masks(1)[0])
    summary = write_codes(source, out, tokenizer, strict=True)
    assert (summary.finished_before, summary.rejected) == (10, 0)
    assert read_rows(out) == with_codes(rows, tiny_model())
