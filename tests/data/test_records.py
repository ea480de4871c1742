"""Boxes of records."""

import pytest

from himtok_plugin.data.records import Record, Region
from himtok_plugin.data.skip_log import AnnotationError


def record(box):
    return Record("a.jpg", (48, 64), "7", (Region(box=box),))


def test_boxes_are_clipped_and_bad_ones_refused():
    for box in ((5, 5, 5, 9), (0, 0, float("nan"), 5), (100, 0, 200, 5), "abcd", (1, 2, 3)):
        with pytest.raises(AnnotationError, match="box is not"):
            record(box).box(0)
    assert record((-5, 0, 99, 9.5)).box(0) == (0, 0, 64, 9.5)
