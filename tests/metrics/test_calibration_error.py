"""calibration_error.py: numbers worked out by hand, against scipy's, merged from parts."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from himtok_plugin.metrics.calibration_error import CalibrationMetrics


def computed(scores, ious, **options):
    metrics = CalibrationMetrics(**options)
    for score, iou in zip(scores, ious, strict=True):
        metrics.update(score, iou)
    return metrics.compute()


def test_numbers_by_hand():
    # Bins of 0.1: two masks in one, 0.65 against 0.4; one in the last, 1.0 against 0.7.
    found = computed([0.62, 0.68, 1.0], [0.5, 0.3, 0.7])
    assert found["ECE"] == pytest.approx((0.5 + 0.3) / 3)
    assert found["Brier"] == pytest.approx((0.12**2 + 0.38**2 + 0.3**2) / 3)
    assert found["spearman"] == pytest.approx(0.5) and found["scored_masks"] == 3  # ranks 1 2 3 and 2 1 3
    assert computed([0.1, 0.9], [0.2, 0.8], bins=1)["ECE"] == pytest.approx(0)
    assert CalibrationMetrics().compute() == {"ECE": None, "Brier": None, "spearman": None, "scored_masks": 0}


def test_rank_correlation_is_that_of_all_values_to_its_resolution():
    rng = np.random.default_rng(0)
    for spread in (1.0, 0.1):  # the scores of a good model lie close together
        scores = 1 - spread * rng.random(2000)
        ious = np.clip(scores + rng.normal(0, spread / 3, 2000), 0, 1)
        assert computed(scores, ious)["spearman"] == pytest.approx(spearmanr(scores, ious).statistic, abs=0.003)
    ties = [0.2, 0.2, 0.5, 0.9, 0.9], [0.1, 0.4, 0.4, 0.4, 0.8]
    assert computed(*ties)["spearman"] == pytest.approx(spearmanr(*ties).statistic)
    assert computed([0.3, 0.3], [0.1, 0.5])["spearman"] is None and computed([1], [1])["spearman"] is None


def test_parts_merge_to_the_whole():
    rng = np.random.default_rng(1)
    scores, ious = rng.random(300), rng.random(300)
    parts = [CalibrationMetrics() for _ in range(3)]
    for i, pair in enumerate(zip(scores, ious, strict=True)):
        parts[i % 3].update(*pair)
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert merged.compute() == pytest.approx(computed(scores, ious)) and len(merged) == 300
    with pytest.raises(ValueError, match="bins is 5 in the other metrics: expected 10"):
        merged.merge(CalibrationMetrics(5))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((1.5, 0.5), "score is 1.5: expected a number in"),
        ((0.5, -0.1), "iou is -0.1"),
        ((float("nan"), 0.5), "score is nan"),
    ],
)
def test_what_is_no_pair_of_shares_is_refused(pair, message):
    metrics = CalibrationMetrics()
    with pytest.raises(ValueError, match=message):
        metrics.update(*pair)
    assert len(metrics) == 0
