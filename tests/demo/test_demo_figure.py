"""The picture of the demo: its layout, and masks that do not fit."""

import numpy as np
import pytest
from PIL import Image

from himtok_plugin.demo.figure import DemoRow, draw_demo_figure

IMAGE = Image.new("RGB", (30, 20), (100, 100, 100))
MASK = np.zeros((20, 30), dtype=bool)
MASK[4:14, 5:20] = True


def test_scenes_with_and_without_an_answer_are_below_each_other():
    growth = {1: MASK * 0.3, 2: MASK, 4: MASK}
    answered = DemoRow("the red shape", IMAGE, MASK, MASK, growth, "IoU 1.00")
    silent = DemoRow("a title much longer than its row " * 9, IMAGE, MASK, None)
    one, two = draw_demo_figure([answered], height=60), draw_demo_figure([answered, silent], height=60)
    assert one.mode == "RGB" and one.width > 6 * 90 and two.width == one.width and two.height > 2 * 60 + one.height / 2


def test_a_figure_needs_a_scene():
    with pytest.raises(ValueError, match="rows is empty"):
        draw_demo_figure([])


def test_a_mask_of_another_size_than_the_image_is_rejected():
    with pytest.raises(ValueError, match="expected bool"):
        draw_demo_figure([DemoRow("x", IMAGE, MASK.T, None)])
