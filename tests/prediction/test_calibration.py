"""Raw scores by hand, and calibrations of scores whose IoU is known."""

import numpy as np
import pytest

from himtok_plugin.metrics.calibration_error import expected_calibration_error
from himtok_plugin.prediction.calibration import Calibration, mask_certainty


def drawn(count=400, seed=0):
    """Overconfident scores: the IoU is about the square of the score."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.3, 1, count)
    return scores, np.clip(scores**2 + rng.normal(0, 0.1, count), 0, 1)


def test_mask_certainty_of_squares_worked_out_by_hand():
    square = np.array([[0.9, 0.5], [0.4, 0.0]], np.float32)
    assert mask_certainty(square) == pytest.approx((0.9 + 0.5) / (1 + 1 + 0.4))
    assert mask_certainty(square, threshold=0.3) == pytest.approx(1.8 / 3)


def test_mask_certainty_is_1_for_certain_masks_and_0_for_empty_ones():
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


def test_calibration_is_constant_outside_its_knots():
    calibration = Calibration((0.4, 0.8), (0.1, 0.6))
    assert calibration(0.0) == 0.1 and calibration(1.0) == 0.6 and calibration(0.6) == pytest.approx(0.35)


def test_calibration_of_unrelated_scores_is_the_mean_iou():
    scores = np.linspace(1, 0, 100)
    calibration = Calibration.fit(scores, np.linspace(0, 1, 100))  # against the score: one level
    assert calibration(0.2) == pytest.approx(0.5) == calibration(0.9)
    assert Calibration.fit([0.7] * 40, [0.0, 1.0] * 20)(0.1) == pytest.approx(0.5)


def test_a_saved_calibration_loads_equal(tmp_path):
    calibration = Calibration.fit(*drawn())
    path = calibration.save(tmp_path)
    assert path.name == "calibration.json" and Calibration.load(tmp_path) == calibration
    weights = tmp_path / "himtok.pth"
    weights.touch()
    assert Calibration.load(weights) == calibration
    assert Calibration.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("content", ["[]", "{", '{"version": 9, "raw": [0], "iou": [0]}', '{"version": 1, "raw": [1]}'])
def test_damaged_calibration_files_are_rejected(tmp_path, content):
    (tmp_path / "calibration.json").write_text(content)
    with pytest.raises(ValueError, match="calibration.json: is not a calibration"):
        Calibration.load(tmp_path)


def test_too_few_masks_are_rejected():
    with pytest.raises(ValueError, match="at least 20 masks"):
        Calibration.fit([0.5] * 19, [0.5] * 19)


@pytest.mark.parametrize("knots", [((0.5, 0.5), (0, 1)), ((0, 1), (1, 0)), ((0, 1), (0, 2)), ((), ())])
def test_knots_that_are_not_an_increasing_map_to_0_1_are_rejected(knots):
    with pytest.raises(ValueError):
        Calibration(*knots)
