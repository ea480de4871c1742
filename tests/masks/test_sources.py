"""sources.py and rle.py: what counts as foreground, and what is rejected."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from himtok_plugin.masks import load_mask, to_rle, to_square


def refused(source, *words, **kwargs):
    with pytest.raises(ValueError) as error:
        load_mask(source, **kwargs)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("value", [1, 38, 127, 128, 255])
@pytest.mark.parametrize("kind", ["array", "png", "int64"])
def test_two_values_with_zero_make_nonzero_the_foreground(blob, tmp_path, value, kind):
    grey = blob.astype(np.uint8) * value
    source = {"array": grey, "int64": grey.astype(np.int64), "png": tmp_path / "m.png"}[kind]
    if kind == "png":
        Image.fromarray(grey).save(source)
    assert np.array_equal(load_mask(source, size=(20, 30)), blob)


def test_grey_edges_are_cut_in_the_middle():
    assert load_mask(np.array([[0, 127, 128, 255]], dtype=np.uint8)).tolist() == [[False, False, True, True]]


def test_jpeg_noise_around_a_mask_is_cut_away(blob, tmp_path):
    Image.fromarray(blob.astype(np.uint8) * 255).convert("RGB").save(tmp_path / "m.jpg", quality=95)
    assert np.mean(load_mask(tmp_path / "m.jpg") == blob) > 0.98


def test_a_map_of_several_labels_is_refused():
    refused(np.array([[0, 1, 2]]), "several labels", "0, 1, 2")
    refused(np.array([[0, 300, 26001]]), "several labels")


@pytest.mark.parametrize("values", [(0, 1, 255), (1, 255), (0, 1, 200), (0, *range(1, 21), 255)])
def test_labels_with_a_void_of_their_own_are_refused_instead_of_being_read_as_the_void(tmp_path, values):
    labels = np.array([values], dtype=np.uint8)
    Image.fromarray(labels).save(tmp_path / "m.png")
    for source in (labels, labels.astype(np.int64), Image.fromarray(labels), tmp_path / "m.png"):
        refused(source, "several labels", f"{values[0]}, ", str(values[-1]))
    with pytest.raises(ValueError, match="several labels"):
        to_square(labels, 8)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("quality", [75, 95, 100])
def test_small_values_of_a_jpeg_are_noise_and_no_labels(tmp_path, mode, quality):
    clean = np.zeros((45, 102), dtype=bool)
    clean[10:15, 9:14] = True  # 0, 1 and 255 at quality 100
    Image.fromarray(clean.astype(np.uint8) * 255).convert(mode).save(tmp_path / "m.jpg", quality=quality)
    for source in (tmp_path / "m.jpg", Image.open(tmp_path / "m.jpg")):
        assert np.array_equal(load_mask(source), clean)
        assert np.abs(to_square(source, 64) - to_square(clean, 64)).mean() < 0.01


@pytest.mark.parametrize("values", [(0, 128, 255), (0, 64, 255), (0, 32, 64, 250), (0, 1, 2, 254, 255)])
def test_few_values_of_grey_are_no_labels(values):
    assert load_mask(np.array([values], dtype=np.uint8)).tolist() == [[value >= 128 for value in values]]


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_constant_image_is_empty_or_full(value):
    assert load_mask(np.full((3, 4), value, dtype=np.uint8)).all() == (value > 0)


def test_floats_are_probabilities(blob):
    assert load_mask(np.array([[0.0, 0.49, 0.5, 1.0]])).tolist() == [[False, False, True, True]]
    refused(np.array([[0.0, 255.0]]), "255.0", "[0, 1]")
    refused(np.array([[0.0, np.nan]]), "nan")


def palette_image(indices, colours):
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette([channel for colour in colours for channel in colour])
    return image


@pytest.mark.parametrize(
    ("background", "foreground"),
    [((0, 0, 0), (128, 0, 0)), ((0, 0, 0), (255, 255, 255)), ((9, 9, 9), (9, 9, 9)), ((255, 255, 255), (200, 0, 0))],
)
def test_a_palette_image_is_a_mask(blob, tmp_path, background, foreground):
    palette_image(blob.astype(np.uint8), [background, foreground]).save(tmp_path / "m.png")
    assert np.array_equal(load_mask(tmp_path / "m.png"), blob)


def test_a_palette_whose_first_colour_is_white_does_not_invert_the_mask(blob):
    white_first = palette_image((~blob).astype(np.uint8), [(255, 255, 255), (0, 0, 0)])
    assert np.array_equal(load_mask(white_first), blob)


def test_a_palette_of_several_labels_is_refused_even_with_a_void_of_255():
    indices = np.array([[0, 5, 255]], dtype=np.uint8)
    colours = [(i, 255 - i, 7) for i in range(256)]
    refused(palette_image(indices, colours), "palette", "0, 5, 255")


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 90), (255, 255, 255)])
def test_one_colour_on_black_is_a_mask(blob, colour):
    pixels = blob[..., None] * np.array(colour, dtype=np.uint8)
    assert np.array_equal(load_mask(Image.fromarray(pixels)), blob)


def test_several_colours_are_refused(blob):
    pixels = np.zeros((20, 30, 3), dtype=np.uint8)
    pixels[blob] = (255, 0, 0)
    pixels[0] = (0, 255, 0)
    refused(Image.fromarray(pixels), "2 colours")


@pytest.mark.parametrize("ink", [0, 255])
def test_a_drawing_on_transparency_has_its_mask_in_alpha(blob, ink):
    pixels = np.full((20, 30, 4), ink, dtype=np.uint8)
    pixels[..., 3] = blob * 255
    assert np.array_equal(load_mask(Image.fromarray(pixels)), blob)


def test_transparent_pixels_are_background(blob):
    pixels = np.zeros((20, 30, 4), dtype=np.uint8)
    pixels[blob] = 255
    pixels[0] = (255, 255, 255, 0)
    assert np.array_equal(load_mask(Image.fromarray(pixels)), blob)


def test_modes_one_and_sixteen_bit_are_read(blob):
    assert np.array_equal(load_mask(Image.fromarray(blob)), blob)
    assert np.array_equal(load_mask(Image.fromarray(blob.astype(np.uint16) * 65535)), blob)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3), (2, 3, 1), (0, 3)])
def test_wrong_dimensions_are_refused(shape):
    refused(np.ones(shape, dtype=bool), str(shape), "(h, w)")


def test_missing_and_damaged_files_are_named(tmp_path, blob):
    refused(tmp_path / "none.png", "none.png", "image file")
    (tmp_path / "text.png").write_text("no image")
    refused(str(tmp_path / "text.png"), "text.png")
    Image.fromarray(blob).save(tmp_path / "m.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "m.png").read_bytes()[:50])
    refused(tmp_path / "cut.png", "cut.png")
    refused(3, "3", "path")


def test_another_size_than_the_image_is_refused(blob):
    refused(blob, "(20, 30)", "(30, 20)", size=(30, 20))
    refused(to_rle(blob), "(20, 30)", size=(21, 30))


@pytest.mark.parametrize("seed", range(5))
def test_rle_agrees_with_pycocotools_and_survives_json(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 60, 2)) < rng.random()
    rle = json.loads(json.dumps(to_rle(mask)))
    assert rle["size"] == list(mask.shape)
    assert np.array_equal(coco.decode(rle).astype(bool), mask)
    assert np.array_equal(load_mask(rle), mask)
    assert np.array_equal(load_mask({**rle, "counts": rle["counts"].encode()}), mask)


def test_long_runs_decode():
    mask = np.zeros((3000, 2000), dtype=bool)
    mask[:, 1000:] = True
    assert np.array_equal(load_mask(to_rle(mask)), mask)


def test_uncompressed_rle_runs_down_the_columns():
    assert load_mask({"counts": [1, 2, 1], "size": [2, 2]}).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "counts",
    [[1, 2], [1, -2, 5], [2, 2.5], [], [True, 3], ["1"], "", "abc", "日本", "4\x00", "o", "P" * 40, 7, None],
)
def test_a_bad_rle_is_refused(counts):
    refused({"counts": counts, "size": [2, 2]}, "counts")


@pytest.mark.parametrize("size", [[2], [2, 0], [2, -2], [2.0, 2], "22", None, [10**6, 10**6], [True, 4]])
def test_a_bad_size_is_refused(size):
    refused({"counts": [4], "size": size}, "size")


def test_random_rle_bytes_never_crash():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        counts = bytes(rng.integers(40, 120, rng.integers(0, 9)).tolist())
        try:
            assert load_mask({"counts": counts, "size": [5, 7]}).shape == (5, 7)
        except ValueError:
            pass


def test_polygons_with_a_size_are_read():
    mask = load_mask({"polygons": [[1, 1, 4, 1, 4, 3, 1, 3]], "size": [5, 10]})
    assert mask.shape == (5, 10) and mask[1:3, 1:4].all() and mask.sum() == 6
    refused({"polygons": [[0, 0, 5, 5]], "size": [10, 10]}, "polygons[0]")


def test_a_mapping_of_neither_kind_is_refused():
    refused({"size": [2, 2]}, "counts or polygons")
    refused({"counts": [4]}, "size")


def test_tensors_are_masks_like_arrays(blob):
    for array in (blob, blob.astype(np.uint8) * 255, blob.astype(np.int64), blob.astype(np.float32)):
        assert np.array_equal(load_mask(torch.from_numpy(array)), blob)
        assert np.array_equal(to_square(torch.from_numpy(array), 16), to_square(array, 16))
    refused(torch.zeros(2, 3, 3), "(2, 3, 3)", "(h, w)")
