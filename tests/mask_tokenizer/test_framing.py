"""Boxes of masks, and resampling between square and canvas."""

import pytest
import torch

from himtok_plugin.mask_tokenizer.box.box_codes import (
    box_code_vectors,
    boxes_to_coordinates,
    coordinates_to_boxes,
    count_bits,
)
from himtok_plugin.mask_tokenizer.box.framing import crop_to_canvas, find_boxes, paste_canvas

CPU = torch.device("cpu")


def rectangle(left, top, right, bottom, side=32):
    square = torch.zeros(1, side, side)
    square[:, top:bottom, left:right] = 1
    return square


def test_boxes_enclose_the_pixels_of_the_object():
    assert find_boxes(rectangle(4, 8, 20, 12)).tolist() == [[4 / 32, 8 / 32, 20 / 32, 12 / 32]]
    assert find_boxes(rectangle(31, 0, 32, 1)).tolist() == [[31 / 32, 0, 1, 1 / 32]]


def test_a_half_covered_pixel_is_half_inside():
    square = rectangle(4, 8, 20, 12)
    square[:, 8:12, 3] = 0.5
    square[:, 8:12, 20] = 0.25
    assert find_boxes(square)[0, [0, 2]].tolist() == [3.5 / 32, 20.25 / 32]
    thin = rectangle(5, 8, 6, 12) * 0.5
    left, _, right, _ = find_boxes(thin)[0].tolist()
    assert (left, right) == (5.25 / 32, 5.75 / 32)


def test_a_mask_without_object_has_a_box_without_extent():
    assert find_boxes(torch.zeros(2, 16, 16)).tolist() == [[0.5] * 4] * 2


def test_the_box_of_several_parts_encloses_all():
    assert find_boxes(rectangle(2, 2, 4, 4) + rectangle(20, 25, 30, 28)).tolist() == [
        [2 / 32, 2 / 32, 30 / 32, 28 / 32]
    ]


@pytest.mark.parametrize("box", [(4, 8, 20, 12), (0, 0, 32, 32), (10, 3, 30, 29)])
def test_a_canvas_in_its_box_is_the_object_again(box):
    square = rectangle(*box)
    boxes = find_boxes(square)
    canvases = crop_to_canvas(square, boxes, 48)
    assert canvases.shape == (1, 48, 48) and canvases[0, 24, 24] > 0.99
    assert torch.equal(paste_canvas(canvases, boxes, 32) >= 0.5, square >= 0.5)


def test_objects_of_all_sizes_look_alike_on_the_canvas():
    yy, xx = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")

    def disc(x, y, radius):
        return ((xx - x) ** 2 + (yy - y) ** 2 <= radius**2).float()[None]

    discs = torch.cat([disc(128, 128, 100), disc(40, 200, 25)])
    large, small = crop_to_canvas(discs, find_boxes(discs), 24)
    assert (large - small).abs().mean() < 0.04  # the outlines of pixels differ


def test_pasting_is_differentiable_by_the_box():
    boxes = torch.tensor([[0.2, 0.2, 0.6, 0.7]], requires_grad=True)
    paste_canvas(torch.ones(1, 8, 8), boxes, 32).sum().backward()
    left, top, right, bottom = boxes.grad[0].tolist()
    assert left < 0 and top < 0 and right > 0 and bottom > 0


def test_a_box_without_extent_shows_nothing():
    assert paste_canvas(torch.ones(1, 48, 48), torch.full((1, 4), 0.5), 64).max() < 0.5


def test_bits_are_shared_among_the_coordinates():
    assert count_bits(1024) == [3, 3, 2, 2] and count_bits(256) == [2, 2, 2, 2] and sum(count_bits(512)) == 9
    with pytest.raises(ValueError, match="codebook_size=1000: expected a power of two"):
        count_bits(1000)


def test_each_code_of_a_box_leaves_a_smaller_range():
    vectors = box_code_vectors(3, 1024, CPU)
    assert vectors.shape == (3, 1024, 4)
    for position, cells in enumerate(((8, 8, 4, 4), (64, 64, 16, 16), (512, 512, 64, 64))):
        assert [len(set(column.tolist())) for column in vectors[position].T] == [8, 8, 4, 4]
        # The farthest value of a code is half a cell away from the border of the range that it divides.
        outer = torch.tensor([0.5 * (8, 8, 4, 4)[i] / cells[i] - 0.5 / cells[i] for i in range(4)])
        assert torch.allclose(vectors[position].abs().amax(0), outer, atol=1e-6)


def test_coordinates_and_boxes_convert_both_ways():
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.9], [0, 0, 1, 1], [0.5, 0.5, 0.502, 0.504], [0.5, 0.5, 0.5, 0.5]])
    coordinates = boxes_to_coordinates(boxes, 3, 1024)
    assert coordinates.min() >= -0.5 and coordinates.max() <= 0.5
    assert torch.allclose(coordinates_to_boxes(coordinates, 3, 1024), boxes, atol=1e-5)
