"""`himtok eval`, `himtok protocols` and `himtok calibrate`: output, files and exit status."""

import json

import numpy as np
import pytest
from tiny_models import tiny_model
from tiny_results import RESULTS, predicted_mask, wide_mask, write_results, write_scored_results, write_two_runs

from himtok_plugin.evaluation.provenance import RunCard
from himtok_plugin.masks import to_rle
from himtok_plugin.prediction.calibration import Calibration


def assert_rejected(result, message):
    status, out, err = result
    assert status == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def save_result(folder):
    truth = np.zeros((4, 4), dtype=bool)
    truth[:2] = True
    row = {"masks": [{**to_rle(truth), "codes": [1], "score": 0.5, "complete": True}], "target_masks": [to_rle(truth)]}
    path = folder / "out.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return path


def test_eval_prints_a_table_and_writes_json(himtok, tmp_path):
    status, out, _ = himtok("eval", save_result(tmp_path), "--json", tmp_path / "scores.json")
    assert status == 0
    for name in ("cIoU", "gIoU", "P@0.5", "P@0.9", "N-acc", "T-acc", "boundary_F", "samples", "missing"):
        assert name in out
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["cIoU"] == 1.0 and scores["samples"] == 1 and scores["N-acc"] is None


def test_eval_prints_json_alone_on_stdout(himtok, tmp_path):
    status, out, _ = himtok("eval", save_result(tmp_path), "--json", "-")
    assert status == 0 and json.loads(out)["gIoU"] == 1.0


def test_eval_names_a_malformed_row(himtok, tmp_path):
    path = save_result(tmp_path)
    path.write_text(path.read_text() + "oops\n")
    assert_rejected(himtok("eval", path), f"{path}: row 2: is not JSON")
    assert_rejected(himtok("eval", tmp_path / "none.jsonl"), "No such file")
    assert_rejected(himtok("eval", tmp_path), "directory")


def test_eval_rejects_min_score_if_no_mask_has_a_score(tmp_path, himtok):
    path = write_results(
        tmp_path / "out.jsonl", {**RESULTS[0], "masks": [{**predicted_mask(0), "score": None}]}, RESULTS[1]
    )
    status, out, _ = himtok("eval", path, "--no_boundary", "--json", "-")
    assert status == 0 and json.loads(out)["samples"] == 2
    status, _, err = himtok("eval", path, "--min_score", 0.3)
    assert (
        status == 2 and f"min_score: got 0.3, expected 0: no mask of {path} has a score" in err and err.count("\n") == 1
    )


def test_eval_counts_results_that_are_not_scored(tmp_path, himtok):
    path = write_results(tmp_path / "out.jsonl", *RESULTS, {"masks": [], "response": "Yes"})
    status, out, _ = himtok("eval", path, "--no_boundary")
    assert status == 0 and "not_scored" in out and "ECE" in out
    status, out, _ = himtok("eval", path, "--no_boundary", "--json", "-")
    assert json.loads(out)["not_scored"] == 1


def test_eval_writes_a_report_with_protocol_run_and_failures(tmp_path, himtok):
    path = write_results(tmp_path / "out.jsonl", *RESULTS)
    card = RunCard(["some/checkpoint"], "ab" * 16, 8, "soft", 0.5, refiner="none", seed=42, versions={"torch": "2"})
    card.save(path)
    status, out, _ = himtok("eval", path, "--protocol", "lisa", "--min_score", 0.1, "--report", tmp_path / "report")
    assert status == 0 and "protocol: lisa: " in out and "bilinear resize" in out and "some/checkpoint" in out
    text = (tmp_path / "report.md").read_text()
    for expected in ("| cIoU | 0.2500 | lisa |", "| checkpoint hash | " + "ab" * 16, "| mask tokens | 8 |", "torch 2"):
        assert expected in text
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["protocol"]["name"] == "lisa" and content["run"]["min_score"] == 0.1
    assert content["per_class"]["b"] == 0.0 and content["failures"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "lissa"], "protocol: got 'lissa', expected one of plain"),
        (["--compare"], "got 1 files, expected 2 with --compare"),
        (["--html", "page.html"], "--html: got it without --compare"),
        (["--seed", "1"], "--seed: got it without --compare or --baseline, expected both"),
        (["--threshold", "0.5"], "--threshold: got it without --resize, expected both"),
        (["--mask_tokenizer", "default"], "--mask_tokenizer: got it without --resize, expected both"),
        (["--compare", "out.jsonl", "--report", "r"], "--report: got it with --compare, which ignores it"),
        (["--compare", "out.jsonl", "--rows", "r"], "--rows: got it with --compare"),
        (["--compare", "out.jsonl", "--baseline", "r"], "--baseline: got it with --compare"),
        (["--compare", "out.jsonl", "--resize", "nearest"], "--resize: got it with --compare"),
        (["--compare", "out.jsonl", "--no_boundary"], "--[no_]boundary: got it with --compare"),
        (["--resize", "nearest"], "--mask_tokenizer: got none with --resize"),
        (["--resize", "cubic"], "--resize: got 'cubic', expected one of bilinear, nearest"),
        (["--protocol", "all-sentences"], "row 1: question: got"),
    ],
)
def test_eval_rejects_options_that_do_not_fit_in_one_line(tmp_path, himtok, arguments, message):
    status, _, err = himtok("eval", write_results(tmp_path / "out.jsonl", *RESULTS), *arguments)
    assert status == 2 and message in err and err.count("\n") == 1


def test_eval_compares_with_answers_that_do_not_look_at_the_image(tmp_path, himtok):
    questions = [{"role": "user", "content": "<image>Segment it."}, {"role": "assistant", "content": "<mask>"}]
    masks = [to_rle(wide_mask(i)) for i in range(3)]
    results = [
        {"messages": questions, "images": [f"{i}.png"], "masks": [mask], "target_masks": [mask]}
        for i, mask in enumerate(masks)
    ]
    path = write_results(tmp_path / "out.jsonl", *results)
    train = write_results(tmp_path / "train.jsonl", *({"messages": questions, "masks": masks[:1]} for _ in range(2)))
    options = ("eval", path, "--baseline", train, "--no_boundary", "--seed", 3)
    status, out, _ = himtok(*options, "--report", tmp_path / "report")
    assert status == 0 and all(name in out for name in ("results", "average mask", "shuffled", "seed 3"))
    text = (tmp_path / "report.md").read_text()
    # Columns: 1 of 1, 0 of 2, 0 of 2.
    assert "| metric | results | average mask | shuffled | protocol |" in text
    assert "| cIoU | 1.0000 | 0.2000 | 0.0000 | plain |" in text and "| not_scored | 0 | - | - | plain |" in text
    assert json.loads((tmp_path / "report.json").read_text())["baselines"]["samples"]["same_phrase"] == 3
    status, out, _ = himtok(*options, "--json", "-")
    found = json.loads(out)
    assert status == 0 and found["cIoU"] == 1.0 and found["baselines"]["average_mask"]["gIoU"] == pytest.approx(1 / 3)
    assert found["baselines"]["training"]["with_mask"] == 2 and found["baselines"]["shuffled"]["T-acc"] == 1.0

    for bad, message in (
        (write_results(tmp_path / "empty.jsonl"), "--baseline: got "),
        (write_results(tmp_path / "text.jsonl", {"messages": questions}), "text.jsonl without any mask, expected the"),
        (tmp_path / "none.jsonl", "No such file"),
    ):
        assert_rejected(himtok("eval", path, "--baseline", bad), message)
    single = write_results(tmp_path / "single.jsonl", results[0])
    assert_rejected(
        himtok("eval", single, "--baseline", train), "--baseline: got answers about 1 images with true masks"
    )


def test_eval_counts_failures_and_chooses_one_of_two_results(tmp_path, himtok):
    answered = {"row": 1, "dataset": "d", **RESULTS[0], "category": "<script>|[red]"}
    failed = {"row": 2, "dataset": "d", "error": "d: row 2: no image", "target_masks": []}
    path = write_results(tmp_path / "out.jsonl", answered, failed)
    status, out, err = himtok("eval", path, "--no_boundary", "--json", "-")
    assert status == 0 and json.loads(out)["failures"] == 1
    assert err == f"1 row without an answer, wrong in every metric, the first: {path}: row 2: d: row 2: no image\n"
    write_results(path, answered, failed, answered)
    assert_rejected(
        himtok("eval", path), "row number 1 of d occurs more than once, on lines 1 and 3: expected one result"
    )
    assert_rejected(himtok("eval", "--compare", path, path), "row number 1 of d occurs more than once")
    status, out, err = himtok("eval", path, "--no_boundary", "--duplicates", "last", "--report", tmp_path / "report")
    assert status == 0 and "IoU of <script>|[red]: " in out
    assert err.startswith("left out 1 result whose row has another one\n")
    assert r"| &lt;script&gt;\|\[red\] |" in (tmp_path / "report.md").read_text()
    status, out, _ = himtok("eval", "--compare", path, path, "--duplicates", "first")
    assert status == 0 and "1 row of a and 1 row of b with an error, which are wrong answers" in out
    assert_rejected(
        himtok("eval", path, "--duplicates", "none"), "--duplicates: got 'none', expected one of refuse, first"
    )


def test_protocols_are_listed(himtok):
    status, out, _ = himtok("protocols")
    assert status == 0 and all(name in out for name in ("per-sentence", "all-sentences", "lisa", "himtok", "grefcoco"))


def test_eval_compares_two_files(tmp_path, himtok):
    a, b, *_ = write_two_runs(tmp_path)
    status, out, _ = himtok("eval", "--compare", a, b, "--html", tmp_path / "page.html", "--protocol", "per-sentence")
    assert status == 0 and "gIoU" in out and "protocol: per-sentence" in out and "row 4: IoU" in out
    assert (tmp_path / "page.html").exists()
    status, out, _ = himtok("eval", "--compare", a, b, "--json", "-")
    content = json.loads(out)
    assert status == 0 and content["rows"] == 40 and content["fell"][0]["key"] == 4
    assert len(content["metrics"]["gIoU"]["difference"]) == 2


def test_calibrate_writes_the_calibration_beside_the_mask_tokenizer(tmp_path, himtok):
    folder = tmp_path / "checkpoint" / "mask_tokenizer"
    tiny_model().save_pretrained(folder)
    path = write_scored_results(tmp_path)
    status, out, err = himtok("calibrate", path, "--checkpoint", tmp_path / "checkpoint", "--json", "-")
    assert status == 0, err
    assert json.loads(out)["masks"] == 60
    assert Calibration.load(folder) is not None


@pytest.mark.parametrize("checkpoint", ["tokenizer", "nothing/x"])
def test_calibrate_rejects_too_few_masks_and_a_missing_checkpoint_in_one_line(tmp_path, himtok, checkpoint):
    path = write_scored_results(tmp_path, count=5)
    tiny_model().save_pretrained(tmp_path / "tokenizer")
    assert_rejected(himtok("calibrate", path, "--checkpoint", tmp_path / checkpoint), "error: ")
