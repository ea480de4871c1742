"""bounding_box.py."""

import numpy as np

from himtok_plugin.masks import mask_bbox


def test_box_is_exclusive_at_the_far_side(blob):
    assert mask_bbox(blob) == (5, 4, 21, 12)
    assert mask_bbox(np.zeros((3, 3), dtype=bool)) == (0, 0, 0, 0)
