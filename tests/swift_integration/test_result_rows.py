"""Result rows of `swift infer`: what evaluation wants to know of them, the run's card, going on where a run was."""

import json

import numpy as np
import pytest
from runs import infer, read_rows, write_rows

from himtok_plugin.evaluation import evaluate_results
from himtok_plugin.masks import to_rle
from himtok_plugin.protocols import find_protocol


@pytest.fixture(scope="module")
def rows(world, tmp_path_factory):
    ignore = np.zeros((48, 64), bool)
    ignore[:, :10] = True
    made = [
        world.segment(world.left, category="thing", ignore=[to_rle(ignore)], source={"id": str(i), "task": "x"})
        for i in range(4)
    ]
    made[1]["ignore"] = {"polygons": [[0, 0, 10, 0, 10, 48, 0, 48]], "size": [48, 64]}  # one mask, of another kind
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


def test_columns_of_evaluation_come_back_in_result_rows(stage_two, rows, tmp_path):
    out = tmp_path / "out.jsonl"
    answered = infer(rows, out, model=stage_two[1], max_new_tokens=24, write_batch_size=2)
    assert [row["row"] for row in answered] == [1, 2, 3, 4]
    for row, asked in zip(answered, read_rows(rows), strict=True):
        assert row["category"] == "thing" and row["source"] == asked["source"]
        assert row["ignore"] == (asked["ignore"] if isinstance(asked["ignore"], list) else [asked["ignore"]])
    lisa, himtok = (evaluate_results(out, find_protocol(name), rows=rows) for name in ("lisa", "himtok"))
    assert lisa.failures == [] and lisa.scores["classes"] == 1
    assert lisa.scores["cIoU"] != himtok.scores["cIoU"]


def test_the_run_leaves_its_card(stage_two, rows, tmp_path):
    out = tmp_path / "out.jsonl"
    infer(rows, out, model=stage_two[1], max_new_tokens=24, mask_decoding="hard", min_score=0.25, num_mask_tokens=3)
    card = evaluate_results(out, boundary=False).run
    assert card.checkpoint == [str(stage_two[1])] and len(card.checkpoint_hash) == 32
    assert (card.mask_decoding, card.min_score, card.num_mask_tokens, card.refiner) == ("hard", 0.25, 3, "none")
    assert card.seed == 42 and card.versions["ms_swift"]


def test_a_run_goes_on_where_it_was(stage_two, rows, tmp_path):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    infer(rows, whole, model=stage_two[1], max_new_tokens=24)
    write_rows(part, [row for row in read_rows(whole) if row["row"] in (1, 3)])
    infer(rows, part, model=stage_two[1], max_new_tokens=24, resume_result=True)
    resumed = sorted(read_rows(part), key=lambda row: row["row"])
    assert [row["row"] for row in resumed] == [1, 2, 3, 4]
    assert [row["response"] for row in resumed] == [row["response"] for row in read_rows(whole)]
    assert evaluate_results(part, rows=rows, boundary=False).failures == []


def test_a_run_over_two_files_goes_on_in_both(stage_two, rows, tmp_path):
    """Their numbers begin at 1 in both."""
    files = [write_rows(tmp_path / f"{name}.jsonl", read_rows(rows)[:2]) for name in "ab"]
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    options = {"model": stage_two[1], "max_new_tokens": 24}
    answered = infer(files, whole, **options)
    keys = [(row["dataset"], row["row"]) for row in answered]
    assert keys == [(str(file), number) for file in files for number in (1, 2)]
    write_rows(part, [answered[1], answered[2]])
    infer(files, part, resume_result=True, **options)
    assert sorted((row["dataset"], row["row"]) for row in read_rows(part)) == keys


def test_results_that_name_no_dataset_are_gone_on_with_where_there_is_but_one(stage_two, rows, tmp_path):
    part = write_rows(tmp_path / "part.jsonl", [{"row": number, "response": "?"} for number in (1, 2, 4)])
    infer(rows, part, model=stage_two[1], max_new_tokens=24, resume_result=True)
    assert [row["row"] for row in read_rows(part)] == [1, 2, 4, 3]


def test_results_of_another_dataset_are_not_gone_on_with(stage_two, rows, tmp_path):
    part = write_rows(tmp_path / "part.jsonl", [{"row": 1, "dataset": "other.jsonl", "response": "?"}])
    with pytest.raises(ValueError, match=r"--resume_result: .*row 1: dataset: got 'other\.jsonl', expected one of \["):
        infer(rows, part, model=stage_two[1], resume_result=True)


def test_results_without_numbers_are_not_gone_on_with(stage_two, rows, tmp_path):
    part = tmp_path / "part.jsonl"
    part.write_text(json.dumps({"response": "?"}) + "\n")
    with pytest.raises(ValueError, match="--resume_result: .*row 1 has no number"):
        infer(rows, part, model=stage_two[1], resume_result=True)
