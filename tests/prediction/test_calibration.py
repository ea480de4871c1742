"""Scores of masks: worked out by hand, calibrated on masks whose IoU is known, written by `himtok calibrate`."""

import json

import numpy as np
import pytest
from tiny_models import tiny_model

from himtok_plugin import cli
from himtok_plugin.evaluation.calibration_fit import fit_calibration, scored_masks
from himtok_plugin.evaluation.protocols import find_protocol
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks.sources import to_rle
from himtok_plugin.metrics.calibration_error import expected_calibration_error
from himtok_plugin.metrics.matching import matched_ious
from himtok_plugin.prediction.calibration import Calibration, mask_certainty


def columns(*chosen, w=20):
    mask = np.zeros((4, w), bool)
    mask[:, list(chosen)] = True
    return mask


def drawn(count=400, seed=0):
    """Overconfident scores: the IoU is about the square of the score."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.3, 1, count)
    return scores, np.clip(scores**2 + rng.normal(0, 0.1, count), 0, 1)


def test_certainty_by_hand():
    square = np.array([[0.9, 0.5], [0.4, 0.0]], np.float32)
    assert mask_certainty(square) == pytest.approx((0.9 + 0.5) / (1 + 1 + 0.4))
    assert mask_certainty(square, threshold=0.3) == pytest.approx(1.8 / 3)


def test_certain_masks_have_certainty_one_and_empty_ones_zero():
    assert mask_certainty(np.eye(4, dtype=np.float32)) == 1
    assert mask_certainty(np.full((4, 4), 0.4, np.float32)) == mask_certainty(np.zeros((4, 4), np.float32)) == 0


def test_calibration_is_monotone_and_lowers_the_error_on_other_masks():
    calibration = Calibration.fit(*drawn(seed=1))
    assert all(np.diff(calibration.raw) > 0) and all(np.diff(calibration.iou) >= 0)
    scores, ious = drawn(seed=2)
    before, after = expected_calibration_error(scores, ious), expected_calibration_error(calibration(scores), ious)
    assert before > 0.15 and after < 0.05


def test_calibration_of_calibrated_scores_changes_little():
    rng = np.random.default_rng(0)
    ious = rng.uniform(0, 1, 1000)
    calibration = Calibration.fit(ious, ious)
    assert abs(calibration(0.5) - 0.5) < 0.05 and isinstance(calibration(0.5), float)


def test_calibration_does_not_go_on_beyond_what_it_has_seen():
    calibration = Calibration((0.4, 0.8), (0.1, 0.6))
    assert calibration(0.0) == 0.1 and calibration(1.0) == 0.6 and calibration(0.6) == pytest.approx(0.35)


def test_calibration_without_any_relation_is_the_mean():
    scores = np.linspace(1, 0, 100)
    calibration = Calibration.fit(scores, np.linspace(0, 1, 100))  # against the score: one level
    assert calibration(0.2) == pytest.approx(0.5) == calibration(0.9)
    assert Calibration.fit([0.7] * 40, [0.0, 1.0] * 20)(0.1) == pytest.approx(0.5)


def test_calibration_survives_its_file(tmp_path):
    calibration = Calibration.fit(*drawn())
    path = calibration.save(tmp_path)
    assert path.name == "calibration.json" and Calibration.load(tmp_path) == calibration
    weights = tmp_path / "himtok.pth"
    weights.touch()
    assert Calibration.load(weights) == calibration
    assert Calibration.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("content", ["[]", "{", '{"version": 9, "raw": [0], "iou": [0]}', '{"version": 1, "raw": [1]}'])
def test_files_that_are_no_calibration_are_refused(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ValueError, match="calibration.json: is no calibration"):
        Calibration.load(tmp_path)


def test_too_few_masks_are_refused():
    with pytest.raises(ValueError, match="at least 20 masks"):
        Calibration.fit([0.5] * 19, [0.5] * 19)


@pytest.mark.parametrize("knots", [((0.5, 0.5), (0, 1)), ((0, 1), (1, 0)), ((0, 1), (0, 2)), ((), ())])
def test_knots_that_are_no_such_map_are_refused(knots):
    with pytest.raises(ValueError):
        Calibration(*knots)


def test_expected_calibration_error_by_hand():
    # Bins of 0.1: two masks in one, 0.65 against 0.4; one in the last, 1.0 against 0.7.
    assert expected_calibration_error([0.62, 0.68, 1.0], [0.5, 0.3, 0.7]) == pytest.approx((0.5 + 0.3) / 3)
    assert expected_calibration_error([0.2], [0.2]) == 0


def test_masks_are_matched_to_what_they_stand_for():
    left, right = columns(0, 1), columns(10, 11)
    assert matched_ious([right, left, columns(5)], [left, right]) == [1, 1, 0]
    assert matched_ious([left], []) == [0] and matched_ious([], [left]) == []
    # Two masks of the same thing: only one of them is right.
    assert sorted(matched_ious([left, left], [left])) == [0, 1]


def result_file(folder, count=60, **fields):
    """Rows whose masks overlap with the truth by a share that follows from their score."""
    rng = np.random.default_rng(0)
    path = folder / "out.jsonl"
    with open(path, "w") as file:
        for _ in range(count):
            width = int(rng.integers(2, 20))
            entry = {**to_rle(columns(*range(width))), "codes": [1], "complete": True}
            entry.update(score=0.5 + width / 40, **fields)
            row = {"response": codes_to_text([1]), "masks": [entry], "target_masks": [to_rle(columns(*range(20)))]}
            file.write(json.dumps(row) + "\n")
    return path


def test_scores_and_ious_of_a_result_file(tmp_path):
    masks = scored_masks(result_file(tmp_path))
    assert len(masks.scores) == 60 and masks.rows.tolist() == list(range(60))
    np.testing.assert_allclose(masks.ious, 2 * masks.scores - 1)


def test_raw_scores_are_taken_where_a_calibration_was_used_already(tmp_path):
    masks = scored_masks(result_file(tmp_path, raw_score=0.25))
    assert set(masks.scores) == {0.25}


def test_report_is_of_masks_that_were_not_fitted_on(tmp_path):
    calibration, report = fit_calibration(scored_masks(result_file(tmp_path)))
    assert report["masks"] == 60 and report["spearman"] == pytest.approx(1)
    assert report["ECE_raw"] > 0.15 > 0.08 > report["ECE_calibrated"]
    masks = scored_masks(tmp_path / "out.jsonl")
    assert report["Brier_raw"] == pytest.approx(((masks.scores - masks.ious) ** 2).mean())
    assert report["Brier_calibrated"] < 0.01
    assert calibration(0.75) == pytest.approx(0.5, abs=0.1)


def test_results_made_with_min_score_are_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps({"response": codes_to_text([1]), "masks": [], "target_masks": []}))
    with pytest.raises(ValueError, match="row 1: masks holds 0, the response 1"):
        scored_masks(path)


def test_ignored_pixels_count_nowhere_and_rows_that_ask_for_no_mask_are_left_out(tmp_path):
    entry = {**to_rle(columns(0, 1, 2, 3)), "codes": [1], "complete": True, "score": 0.5}
    row = {"response": codes_to_text([1]), "masks": [entry], "target_masks": [to_rle(columns(2, 3, 4, 5))]}
    ignoring = {**row, "ignore": [to_rle(columns(0, 4, 5, 9))]}
    asked_for_none = {"response": codes_to_text([1]), "masks": [entry]}
    path = tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (asked_for_none, row, ignoring)))
    masks = scored_masks(path)
    assert masks.ious == pytest.approx([2 / 6, 2 / 3]) and masks.rows.tolist() == [1, 2]
    assert scored_masks(path, protocol=find_protocol("himtok")).ious[1] == pytest.approx(6 / 7)


def test_masks_without_a_score_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"row 1: masks\[0\].score is None"):
        scored_masks(result_file(tmp_path, raw_score=None))


def run_cli(capsys, *arguments):
    capsys.readouterr()  # what saving a model printed
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_command_writes_the_calibration_beside_the_mask_tokenizer(tmp_path, capsys):
    folder = tmp_path / "checkpoint" / "mask_tokenizer"
    tiny_model().save_pretrained(folder)
    path = result_file(tmp_path)
    status, out, err = run_cli(capsys, "calibrate", path, "--checkpoint", tmp_path / "checkpoint", "--json", "-")
    assert status == 0, err
    assert json.loads(out)["masks"] == 60
    assert Calibration.load(folder) is not None


def test_command_refuses_what_it_cannot_use_in_one_line(tmp_path, capsys):
    path = result_file(tmp_path, count=5)
    tiny_model().save_pretrained(tmp_path / "tokenizer")
    for arguments in (
        (path, "--checkpoint", tmp_path / "tokenizer"),
        (path, "--checkpoint", tmp_path / "nothing" / "x"),
    ):
        status, out, err = run_cli(capsys, "calibrate", *arguments)
        assert status == 2 and not out and err.startswith("error: ") and err.count("\n") == 1
