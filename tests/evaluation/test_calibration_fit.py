"""Calibration on a result file: scores and IoUs are read per mask, and the report is of masks not used for the fit."""

import json

import numpy as np
import pytest
from tiny_results import column_mask, write_scored_results

from himtok_plugin.evaluation.calibration_fit import fit_calibration, read_scored_masks
from himtok_plugin.evaluation.protocols import find_protocol
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import to_rle


def test_scores_and_ious_of_a_result_file(tmp_path):
    masks = read_scored_masks(write_scored_results(tmp_path))
    assert len(masks.scores) == 60 and masks.rows.tolist() == list(range(60))
    np.testing.assert_allclose(masks.ious, 2 * masks.scores - 1)


def test_raw_scores_are_used_if_the_results_are_calibrated(tmp_path):
    masks = read_scored_masks(write_scored_results(tmp_path, raw_score=0.25))
    assert set(masks.scores) == {0.25}


def test_the_report_is_of_masks_not_used_for_the_fit(tmp_path):
    calibration, report = fit_calibration(read_scored_masks(write_scored_results(tmp_path)))
    assert report["masks"] == 60 and report["spearman"] == pytest.approx(1)
    assert report["ECE_raw"] > 0.15 > 0.08 > report["ECE_calibrated"]
    masks = read_scored_masks(tmp_path / "out.jsonl")
    assert report["Brier_raw"] == pytest.approx(((masks.scores - masks.ious) ** 2).mean())
    assert report["Brier_calibrated"] < 0.01
    assert calibration(0.75) == pytest.approx(0.5, abs=0.1)


def test_results_made_with_min_score_are_rejected(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps({"response": codes_to_text([1]), "masks": [], "target_masks": []}))
    with pytest.raises(ValueError, match="row 1: masks holds 0, the response 1"):
        read_scored_masks(path)


def test_ignored_pixels_and_results_without_true_masks_do_not_count(tmp_path):
    entry = {**to_rle(column_mask(0, 1, 2, 3, width=20)), "codes": [1], "complete": True, "score": 0.5}
    row = {
        "response": codes_to_text([1]),
        "masks": [entry],
        "target_masks": [to_rle(column_mask(2, 3, 4, 5, width=20))],
    }
    ignoring = {**row, "ignore": [to_rle(column_mask(0, 4, 5, 9, width=20))]}
    asked_for_none = {"response": codes_to_text([1]), "masks": [entry]}
    path = tmp_path / "out.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (asked_for_none, row, ignoring)))
    masks = read_scored_masks(path)
    assert masks.ious == pytest.approx([2 / 6, 2 / 3]) and masks.rows.tolist() == [1, 2]
    assert read_scored_masks(path, protocol=find_protocol("himtok")).ious[1] == pytest.approx(6 / 7)


def test_masks_without_a_score_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"row 1: masks\[0\].score is None"):
        read_scored_masks(write_scored_results(tmp_path, raw_score=None))
