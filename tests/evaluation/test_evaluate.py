"""`evaluate_results`: protocols, failures and shares of several processes. Results are worked out by hand."""

import json
import subprocess
import sys
from dataclasses import asdict

import pytest
from tiny_results import RESULTS, column_mask, predicted_mask, write_results

from himtok_plugin.evaluation.baselines import BaselineSettings
from himtok_plugin.evaluation.evaluate import evaluate_results
from himtok_plugin.evaluation.protocols import find_protocol
from himtok_plugin.evaluation.results import read_results
from himtok_plugin.evaluation.scoring import ResultScores
from himtok_plugin.masks import to_rle


def asked(text):
    return [{"role": "user", "content": f"<image>{text}"}, {"role": "assistant", "content": "It is <mask>."}]


def test_the_protocol_changes_the_scores_and_is_in_the_report(tmp_path):
    path = write_results(tmp_path / "out.jsonl", *RESULTS)
    lisa = evaluate_results(path, find_protocol("lisa"), boundary=False)
    assert lisa.scores["cIoU"] == pytest.approx(4 / (8 + 4 + 4))
    assert (lisa.scores["missing"], lisa.scores["failures"], lisa.protocol.name) == (1, 0, "lisa")
    himtok = evaluate_results(path, find_protocol("himtok"), boundary=False)
    assert himtok.scores["cIoU"] == pytest.approx(8 / (12 + 4 + 4))
    assert lisa.per_class == {"a": pytest.approx(4 / 12), "b": 0.0} and lisa.scores["mIoU"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("protocol", ["plain", "himtok", "grefcoco-50px"])
def test_run_lengths_and_pixels_give_the_same_scores(tmp_path, protocol):
    path = write_results(tmp_path / "out.jsonl", *RESULTS)
    counted = evaluate_results(path, find_protocol(protocol), boundary=False).scores
    seen = evaluate_results(path, find_protocol(protocol), boundary=True).scores
    assert {name: seen[name] for name in counted} == counted
    assert set(seen) - set(counted) == {"boundary_F", "boundary_IoU"}


def test_samples_without_a_result_are_missing_answers_and_listed(tmp_path):
    dataset = write_results(
        tmp_path / "rows.jsonl",
        *({"messages": asked("Segment it."), "masks": [to_rle(column_mask(i))]} for i in range(3)),
        {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Nothing."}]},
    )
    results = [{"row": i + 1, "masks": [predicted_mask(i)], "target_masks": [to_rle(column_mask(i))]} for i in (2, 0)]
    report = evaluate_results(write_results(tmp_path / "out.jsonl", *results), rows=dataset, boundary=False)
    assert report.failures == [f"{dataset}: row 2: has no result"]
    assert (report.scores["samples"], report.scores["missing"], report.scores["failures"]) == (3, 1, 1)
    assert report.scores["gIoU"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="row number 1 occurs more than once"):
        evaluate_results(write_results(tmp_path / "out.jsonl", *results[1:] * 2), rows=dataset)
    with pytest.raises(ValueError, match="row 1: row: got None, expected its number in the dataset"):
        evaluate_results(write_results(tmp_path / "out.jsonl", {**results[0], "row": None}), rows=dataset)


def test_missing_boxes_are_failures_and_samples_without_a_truth_are_not(tmp_path):
    box = {"objects": {"ref": [], "bbox": [[0, 0, 2, 4]]}, "messages": asked("Where?"), "asks_for_masks": False}
    box["messages"][1]["content"] = "<bbox>"
    yes = {"messages": [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes"}], "masks": []}
    dataset = write_results(
        tmp_path / "rows.jsonl",
        {**box, "masks": []},
        {**box, "masks": []},
        {**yes, "asks_for_masks": False},
        {**yes, "masks": None},
        yes,  # by its own account without a target
    )
    answered = {"row": 1, "masks": [], "boxes": [[0, 0, 2, 4]], "target_boxes": [[0, 0, 2, 4]]}
    without_number = {"masks": [], "response": "Yes"}  # of the row without masks
    path = write_results(tmp_path / "out.jsonl", answered, without_number)
    report = evaluate_results(path, rows=dataset, boundary=False)
    assert report.failures == [f"{dataset}: row {n}: has no result" for n in (2, 5)]
    scores = report.scores
    assert (scores["box_acc@0.9"], scores["box_samples"], scores["box_missing"]) == (0.5, 2, 1)
    # The fifth has no target, but who does not answer is not right.
    assert (scores["N-acc"], scores["samples"], scores["not_scored"], scores["failures"]) == (0.0, 1, 1, 2)


def test_masks_of_questions_are_not_expected_in_a_missing_answer(tmp_path):
    row = {"messages": asked("What is beside <mask>?"), "masks": [to_rle(column_mask(0)), to_rle(column_mask(1))]}
    other = {"row": 2, "masks": [], "target_masks": []}
    path = write_results(tmp_path / "out.jsonl", other)
    report = evaluate_results(path, rows=write_results(tmp_path / "rows.jsonl", row, row), boundary=False)
    assert report.scores["T-acc"] == 0.0 and report.scores["cIoU"] == 0.0


def test_results_with_an_error_are_wrong_answers_and_listed(tmp_path):
    """Also where an answer without a mask would be right, where a box is asked for, and without `--rows`."""
    true = {"target_masks": [to_rle(column_mask(0))], "category": "a"}
    results = [
        {"row": 1, "masks": [predicted_mask(0)], **true},
        {"row": 2, "error": "row 2: no image", **true},
        {"row": 3, "error": "row 3: no image", "target_masks": []},
        {"row": 4, "error": "row 4: no image", "target_boxes": [[0, 0, 2, 4]]},
        {"row": 5, "error": "row 5: no image"},
        {"row": 6, "error": "row 6: no image", "target_masks": ["none.png"]},
    ]
    path = write_results(tmp_path / "out.jsonl", *results)
    for boundary in (False, True):
        report = evaluate_results(path, boundary=boundary)
        scores = report.scores
        assert report.failures == [f"{path}: row {n}: row {n}: no image" for n in range(2, 7)]
        assert (scores["samples"], scores["missing"], scores["not_scored"], scores["failures"]) == (3, 1, 2, 5)
        assert scores["gIoU"] == pytest.approx(1 / 3) and scores["cIoU"] == 0.5 and scores["N-acc"] == 0.0
        assert scores["T-acc"] == 0.5 and scores["mIoU"] == 0.5 and scores["P@0.5"] == pytest.approx(1 / 3)
        assert (scores["box_samples"], scores["box_missing"]) == (1, 1)
    assert scores["boundary_F"] == pytest.approx(1 / 3)
    assert "5 failures, in the scores as wrong answers:" in report.markdown()


def test_results_that_were_appended_twice_are_refused_or_one_is_chosen(tmp_path):
    first = [{"row": i, "dataset": "d", "masks": [], "target_masks": [to_rle(column_mask(i))]} for i in (1, 2)]
    second = [{**row, "masks": [predicted_mask(row["row"])]} for row in first]
    path = write_results(tmp_path / "out.jsonl", *first, "", *second)
    refused = r"out.jsonl: row number 1 of d occurs more than once, on lines 1 and 4: expected one result per row"
    with pytest.raises(ValueError, match=refused):
        evaluate_results(path, boundary=False)
    for duplicates, iou in (("first", 0.0), ("last", 1.0)):
        report = evaluate_results(path, boundary=False, duplicates=duplicates)
        assert (report.scores["gIoU"], report.scores["samples"], report.left_out) == (iou, 2, 2)
        assert "2 results are left out" in report.markdown()
    with pytest.raises(ValueError, match="--duplicates: got 'all', expected one of refuse, first, last"):
        evaluate_results(path, duplicates="all")


def test_equal_numbers_of_several_datasets_are_different_rows(tmp_path):
    results = [{"row": 1, "dataset": name, "masks": [], "target_masks": []} for name in "ab"]
    path = write_results(tmp_path / "out.jsonl", *results)
    assert evaluate_results(path, boundary=False).scores["samples"] == 2
    rows = write_results(tmp_path / "rows.jsonl", {"messages": asked("Segment it."), "masks": []})
    with pytest.raises(ValueError, match="dataset: got results of a, b, expected those of .*rows.jsonl alone"):
        evaluate_results(path, rows=rows)


def test_shares_of_processes_merge_to_the_scores_of_one(tmp_path):
    path = write_results(tmp_path / "out.jsonl", *RESULTS * 5)
    whole = evaluate_results(path, boundary=False).scores
    parts = []
    for rank in range(3):
        scores = ResultScores(boundary=False)
        for number, row in read_results(path, share=(rank, 3)):
            assert number % 3 == rank
            scores.add(row)
        parts.append(scores)
    merged = parts[0].merge(parts[1]).merge(parts[2]).compute()
    assert merged == pytest.approx({name: value for name, value in whole.items() if name != "failures"})


@pytest.mark.slow
def test_two_processes_print_one_report_with_all_rows(tmp_path):
    path = write_results(tmp_path / "out.jsonl", *RESULTS * 5)
    train = write_results(tmp_path / "train.jsonl", *({"masks": result["target_masks"]} for result in RESULTS))
    command = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29731", "-m"]
    arguments = ["himtok_plugin.cli", "eval", str(path), "--baseline", str(train), "--no_boundary", "--json", "-"]
    done = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)
    assert scores["samples"] == 15
    whole = evaluate_results(path, boundary=False, baseline=BaselineSettings([train]))
    assert scores["cIoU"] == pytest.approx(whole.scores["cIoU"])
    for name, expected in whole.baselines.columns({}).items():
        assert name == "results" or scores["baselines"][name.replace(" ", "_")] == pytest.approx(expected), name
    assert scores["baselines"]["samples"] == asdict(whole.baselines.samples)
