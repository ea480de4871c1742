"""masks.py and coco_masks.py: what counts as foreground, what is refused, and the way to the square and back."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco

from himtok_plugin.masks.sources import Masks, from_square, load_mask, mask_bbox, to_rle, to_square


@pytest.fixture
def blob():
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:12, 5:21] = True
    return mask


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


def test_polygons_are_united():
    mask = load_mask({"polygons": [[0, 0, 4, 0, 4, 3, 0, 3], [6, 1, 8, 1, 8, 4, 6, 4]], "size": [5, 10]})
    expected = np.zeros((5, 10), dtype=bool)
    expected[0:3, 0:4] = expected[1:4, 6:8] = True
    assert np.array_equal(mask, expected)
    assert not load_mask({"polygons": [], "size": [5, 10]}).any()


@pytest.mark.parametrize(
    "polygon",
    [
        [0, 0, 5, 0, 5, 99],
        [-3, 0, 5, 0, 5, 5],
        [0, 0, 5, 0, 5],
        [0, 0, 5, 5],
        [],
        [0, 0, 5, 0, 5, np.nan],
        ["a"] * 6,
        4,
        [[0, 0], [5, 0], [5, 5]],
    ],
)
def test_a_bad_polygon_is_refused_by_index(polygon):
    refused({"polygons": [[0, 0, 4, 0, 4, 4], polygon], "size": [10, 10]}, "polygons[1]")


def test_a_mapping_of_neither_kind_is_refused():
    refused({"size": [2, 2]}, "counts or polygons")
    refused({"counts": [4]}, "size")


def test_to_square_is_pils_bicubic_stretch_of_8_bit_grey(blob):
    grey = blob.astype(np.uint8) * 255
    expected = np.asarray(Image.fromarray(grey).resize((16, 16), Image.BICUBIC)) / np.float32(255)
    for source in (blob, grey, grey // 255, Image.fromarray(grey)):
        square = to_square(source, 16)
        assert square.dtype == np.float32 and square.shape == (16, 16)
        assert np.array_equal(square, expected)
    assert 0 < np.count_nonzero((square > 0) & (square < 1))


def test_to_square_keeps_grey():
    grey = np.full((30, 30), 51, dtype=np.uint8)
    grey[:10], grey[20:] = 0, 255
    expected = np.asarray(Image.fromarray(grey).resize((8, 8), Image.BICUBIC)) / np.float32(255)
    for source in (grey, Image.fromarray(grey)):
        assert np.array_equal(to_square(source, 8), expected)
    assert to_square(grey, 30)[15, 15] == np.float32(0.2)


@pytest.mark.parametrize("values", [(0, 1), (0, 2), (0, 38), (0, 200), (0, 255), (100, 200), (100, 101), (2, 2)])
def test_two_values_are_the_same_mask_to_load_mask_and_to_square(blob, values):
    two = np.where(blob, *np.array(values[::-1], dtype=np.uint8))
    if values == (100, 101):
        refused(two, "several labels")
        return
    for source in (two, Image.fromarray(two), two.astype(np.int64)):
        assert np.array_equal(to_square(source, 16), to_square(load_mask(two), 16))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_what_a_tokenizer_decodes_is_taken_as_it_comes(blob, dtype):
    square = to_square(blob, 16)
    tensor = torch.from_numpy(square).to(getattr(torch, dtype)).requires_grad_()
    near = np.abs(square - 0.5) < 0.01  # where rounding may decide
    assert near.mean() < 0.02
    assert np.mean(from_square(tensor, blob.shape) == from_square(square, blob.shape)) > 0.98
    assert np.array_equal(load_mask(tensor)[~near], (square >= 0.5)[~near])
    masks = Masks.from_squares(tensor[None], blob.shape)
    assert np.array_equal(masks[0], from_square(tensor, blob.shape))


def test_tensors_are_masks_like_arrays(blob):
    for array in (blob, blob.astype(np.uint8) * 255, blob.astype(np.int64), blob.astype(np.float32)):
        assert np.array_equal(load_mask(torch.from_numpy(array)), blob)
        assert np.array_equal(to_square(torch.from_numpy(array), 16), to_square(array, 16))
    refused(torch.zeros(2, 3, 3), "(2, 3, 3)", "(h, w)")


def test_from_square_can_copy_the_nearest_pixels():
    prob = np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    nearest = from_square(prob, (4, 4), resample="nearest")
    assert np.array_equal(nearest, np.array([[0, 0, 1, 1]] * 2 + [[0] * 4] * 2, bool))  # above 0.5, not at it
    with pytest.raises(ValueError, match="resample is 'cubic': expected one of bilinear, nearest"):
        from_square(prob, (4, 4), resample="cubic")


def test_from_square_is_bilinear_then_threshold():
    prob = np.array([[0.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    assert from_square(prob, (1, 8)).tolist() == [[False] * 4 + [True] * 4]
    assert from_square(prob, (1, 8), threshold=0.9).sum() < 4
    for bad in (prob * 2, prob * np.nan, prob[0]):
        with pytest.raises(ValueError, match="prob"):
            from_square(bad, (1, 8))


def test_square_and_back_keeps_the_mask(blob):
    assert np.mean(from_square(to_square(blob), blob.shape) == blob) > 0.99


def test_box_is_exclusive_at_the_far_side(blob):
    assert mask_bbox(blob) == (5, 4, 21, 12)
    assert mask_bbox(np.zeros((3, 3), dtype=bool)) == (0, 0, 0, 0)


def test_masks_is_an_immutable_sequence_of_one_size(blob, tmp_path):
    Image.fromarray(blob).save(tmp_path / "m.png")
    masks = Masks.load(["m.png", to_rle(~blob)], size=(20, 30), root=tmp_path)
    assert len(masks) == 2 and masks.size == (20, 30)
    assert np.array_equal(masks[0], blob) and np.array_equal(masks[-1], ~blob) and len(masks[1:]) == 1
    assert masks.union().all() and masks.boxes().tolist() == [[5, 4, 21, 12], [0, 0, 30, 20]]
    assert masks.squares(8).shape == (2, 8, 8) and masks.squares(8).dtype == np.float32
    assert np.array_equal(Masks(masks.to_rle())[1], ~blob)
    with pytest.raises(ValueError, match="read-only"):
        masks[0][0, 0] = True
    blob[:] = False
    assert masks[0].any()


def test_masks_may_be_empty_where_the_size_is_known():
    masks = Masks([], size=(4, 5))
    assert masks.squares(8).shape == (0, 8, 8) and masks.boxes().shape == (0, 4) and not masks.union().any()
    with pytest.raises(ValueError, match="size"):
        Masks([])


def test_masks_names_the_index_of_a_bad_one(blob):
    with pytest.raises(ValueError, match=r"masks\[1\]: .*\(3, 3\)"):
        Masks([blob, np.ones((3, 3), dtype=bool)])


def test_masks_from_squares(blob):
    masks = Masks.from_squares(np.stack([to_square(blob, 64)] * 2), blob.shape)
    assert len(masks) == 2 and np.mean(masks[1] == blob) > 0.98
