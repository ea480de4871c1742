"""drawing.py: sizes, which pixels change, and what is rejected."""

import numpy as np
import pytest
from PIL import Image

from himtok_plugin.masks.drawing import (
    COLORS,
    choose_colors,
    draw_mask_strip,
    draw_mask_tag,
    draw_tag,
    overlay,
    text_color,
)

IMAGE = Image.new("RGB", (30, 20), (100, 100, 100))
MASK = np.zeros((20, 30), dtype=bool)
MASK[4:14, 5:20] = True


def test_overlay_tints_the_mask_and_leaves_the_rest():
    result = overlay(IMAGE, [MASK], alpha=0.5, colors=[(200, 0, 0)])
    pixels = np.asarray(result)
    assert result.mode == "RGB" and result.size == (30, 20)
    assert (pixels[~MASK] == 100).all()
    assert pixels[9, 12].tolist() == [150, 50, 50]


def test_overlay_outlines_the_mask_but_not_the_images_border():
    full = np.asarray(overlay(IMAGE, [np.ones((20, 30), dtype=bool)], colors=[(200, 0, 0)]))
    assert (full == [150, 50, 50]).all()
    pixels = np.asarray(overlay(IMAGE, [MASK], colors=[(200, 0, 0)]))
    assert pixels[4, 12].tolist() == [255, 255, 255] and pixels[5, 12].tolist() == [200, 0, 0]


def test_overlay_takes_grey_images_many_masks_and_none():
    grey = np.zeros((20, 30), dtype=np.uint8)
    assert overlay(grey, [MASK] * 9).size == (30, 20)
    assert not np.asarray(overlay(grey, [])).any()


def test_overlay_does_not_change_its_input():
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    overlay(image, [MASK])
    assert not image.any()


@pytest.mark.parametrize("mask", [MASK.T, MASK.astype(np.uint8), MASK[0]])
def test_overlay_refuses_a_mask_that_is_not_the_images(mask):
    with pytest.raises(ValueError, match=r"masks\[1\].*\(20, 30\)"):
        overlay(IMAGE, [MASK, mask])


def test_overlay_refuses_bad_settings():
    with pytest.raises(ValueError, match="alpha"):
        overlay(IMAGE, [MASK], alpha=2)
    with pytest.raises(ValueError, match="colors"):
        overlay(IMAGE, [MASK], colors=[])


def test_strip_shows_masks_and_probabilities_in_a_row():
    plain = draw_mask_strip([MASK, MASK * 0.5], height=40)
    labelled = draw_mask_strip([MASK, MASK * 0.5], ["1 token", "2 tokens"], height=40)
    assert plain.width > 2 * 60 and labelled.height > plain.height
    assert {0, 128, 255} <= set(np.unique(np.asarray(plain)).tolist())


def test_strip_refuses_nothing_and_uncounted_labels():
    with pytest.raises(ValueError, match="masks is empty"):
        draw_mask_strip([])
    with pytest.raises(ValueError, match="labels has 1"):
        draw_mask_strip([MASK, MASK], ["1"])
    with pytest.raises(ValueError, match=r"masks\[0\]"):
        draw_mask_strip([MASK[0]])


def test_colors_are_chosen_against_the_pixels_below_and_differ():
    pixels = np.full((20, 30, 3), 60, np.uint8)
    other = ~MASK
    for color in COLORS:
        pixels[MASK] = color
        chosen = choose_colors(pixels, [MASK, other])
        assert chosen[0] != color and chosen[0] != chosen[1]
    assert set(choose_colors(pixels, [MASK] * 20)) <= set(COLORS)
    assert choose_colors(pixels, []) == [] and len(choose_colors(pixels, [np.zeros_like(MASK)])) == 1


def test_a_tag_is_drawn_within_the_picture_with_readable_text():
    for corner in ((-50, -50), (10, 15), (500, 500)):
        picture = Image.new("RGB", (60, 40), (100, 100, 100))
        draw_tag(picture, corner, "1", (250, 180, 30))
        changed = (np.asarray(picture) != 100).any(axis=2)
        assert changed.sum() >= 16 * 10 and not changed.all()
    assert text_color((250, 180, 30)) != text_color((30, 30, 90)) == (255, 255, 255)


def test_a_mask_is_tagged_at_its_top_and_an_empty_one_is_not():
    picture, mask = Image.new("RGB", (200, 100)), np.zeros((100, 200), bool)
    draw_mask_tag(picture, mask, (9, 9, 9), "cup", 1)
    assert not np.asarray(picture).any()
    mask[50:90, 20:60] = True
    draw_mask_tag(picture, mask, (200, 30, 30), "cup", 1, "0.80")
    rows, columns = np.nonzero(np.asarray(picture).any(axis=2))
    assert (rows.max(), columns.min()) == (49, 20)


def test_a_label_that_the_font_lacks_is_drawn_as_the_number_of_its_mask():
    mask = np.ones((100, 200), bool)
    pictures = [Image.new("RGB", (200, 100)) for _ in range(2)]
    for picture, label in zip(pictures, ("杯子", "7"), strict=True):
        draw_mask_tag(picture, mask, (200, 30, 30), label, 7)
    assert np.array_equal(*map(np.asarray, pictures))
