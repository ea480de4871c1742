"""A mask that the tests of this folder share."""

import numpy as np
import pytest


@pytest.fixture
def blob():
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:12, 5:21] = True
    return mask
