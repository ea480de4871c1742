"""Images are cut into the tiles of the authors' rule, in their order, with the thumbnail last."""

import numpy as np
import pytest
import torch
from chat_models import chat_config, qwen2_files, with_tokenizer
from PIL import Image
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from himtok_plugin.internvl_chat.fast_tokenizer import build_fast_tokenizer
from himtok_plugin.internvl_chat.processor import build_processor


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_fast_tokenizer(with_tokenizer(qwen2_files()).write(tmp_path_factory.mktemp("qwen2")))


def grid_of(width, height, tile, least, most):
    """InternVL's rule: the grid with the nearest aspect ratio; of equally near ones the larger one, if the image fills
    at least half of it."""
    grids = sorted(
        {
            (i, j)
            for n in range(least, most + 1)
            for i in range(1, n + 1)
            for j in range(1, n + 1)
            if least <= i * j <= most
        },
        key=lambda grid: grid[0] * grid[1],
    )
    best, nearest = (1, 1), float("inf")
    for grid in grids:
        distance = abs(width / height - grid[0] / grid[1])
        if distance < nearest or (distance == nearest and width * height > 0.5 * tile * tile * grid[0] * grid[1]):
            best, nearest = grid, distance
    return best


@pytest.mark.parametrize("most", [1, 4, 6, 12])
def test_tile_grids_follow_the_authors_rule(most):
    for width in range(100, 2000, 37):
        for height in (100, 224, 448, 480, 640, 768, 1024, 1333, 2000):
            assert get_optimal_tiled_canvas((height, width), (448, 448), 1, most) == grid_of(
                width, height, 448, 1, most
            )


@pytest.mark.parametrize("size", [(56, 56), (200, 100), (60, 190), (300, 310)])
def test_tiles_are_cut_row_by_row_and_the_thumbnail_is_last(tokenizer, size):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    processor = build_processor(chat_config(), tokenizer)
    columns, rows = grid_of(*size, 56, 1, 4)
    whole = image.resize((56 * columns, 56 * rows), Image.Resampling.BICUBIC)
    tiles = [
        whole.crop((56 * column, 56 * row, 56 * column + 56, 56 * row + 56))
        for row in range(rows)
        for column in range(columns)
    ]
    if len(tiles) > 1:
        tiles.append(image.resize((56, 56), Image.Resampling.BICUBIC))
    pixels = np.stack([np.asarray(tile) for tile in tiles]) / 255
    expected = (pixels - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    found = processor.image_processor(image, return_tensors="pt").pixel_values
    assert found.shape == (len(tiles), 3, 56, 56)
    # Two libraries' bicubic filters: a level or two of 255.
    assert (found.permute(0, 2, 3, 1) - torch.from_numpy(expected)).abs().max() < 3 / 255 / 0.22


def test_text_holds_one_image_token_per_feature_of_the_tiles(tokenizer):
    processor = build_processor(chat_config(), tokenizer)
    image = Image.new("RGB", (112, 56))
    inputs = processor(images=image, text="<IMG_CONTEXT>\nSegment it.", return_tensors="pt")
    ids = inputs.input_ids[0].tolist()
    assert inputs.pixel_values.shape[0] == 3  # two and the thumbnail
    assert ids.count(processor.image_token_id) == 3 * 4
    assert ids[0] == processor.start_image_token_id and ids[3 * 4 + 1] == processor.end_image_token_id


def test_a_model_without_tiles_gets_one_even_if_tiles_are_requested(tokenizer):
    processor = build_processor({**chat_config(), "dynamic_image_size": False}, tokenizer)
    found = processor.image_processor(Image.new("RGB", (300, 100)), crop_to_patches=True, return_tensors="pt")
    assert found.pixel_values.shape == (1, 3, 56, 56)


def test_tiles_without_a_thumbnail_are_rejected(tokenizer):
    with pytest.raises(ValueError, match="use_thumbnail: got False"):
        build_processor({**chat_config(), "use_thumbnail": False}, tokenizer)
