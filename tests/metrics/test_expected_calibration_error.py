"""The expected calibration error, by hand."""

import pytest

from himtok_plugin.metrics.calibration_error import expected_calibration_error


def test_expected_calibration_error_by_hand():
    # Bins of 0.1: two masks in one, 0.65 against 0.4; one in the last, 1.0 against 0.7.
    assert expected_calibration_error([0.62, 0.68, 1.0], [0.5, 0.3, 0.7]) == pytest.approx((0.5 + 0.3) / 3)
    assert expected_calibration_error([0.2], [0.2]) == 0
