"""Images are read as viewers show them, or refused."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from himtok_plugin.files.images import make_upright, open_header, read_header, to_upright_rgb

ORIENTATION = 274  # EXIF's number of the tag
PIXELS = (np.random.default_rng(0).random((40, 60, 3)) * 255).astype(np.uint8)
LOSSLESS = {"png": {}, "tiff": {}, "webp": {"lossless": True}}


def write_turned(path, orientation, pixels=PIXELS, **options):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_a_turned_image_is_what_viewers_show_and_its_header_says_so(tmp_path, suffix, orientation):
    path = write_turned(tmp_path / f"a.{suffix}", orientation, **LOSSLESS.get(suffix, {}))
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    header = open_header(path)
    assert (header.size, header.stored_size) == (expected.shape[:2], (40, 60))
    assert header.orientation == orientation and bool(header.frame_note) == (orientation > 1)
    with Image.open(path) as loaded, Image.open(path) as opened:
        loaded.load()
        for image in (opened, loaded, loaded.convert("RGB"), loaded.copy()):
            upright = to_upright_rgb(image, "image")
            assert np.array_equal(np.asarray(upright), expected)
            assert make_upright(upright) is upright, "turned twice"


def test_an_image_without_exif_or_with_a_damaged_one_is_upright(tmp_path):
    plain, damaged = tmp_path / "plain.png", tmp_path / "damaged.jpg"
    Image.fromarray(PIXELS).save(plain)
    Image.fromarray(PIXELS).save(damaged, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    for path in (plain, damaged, write_turned(tmp_path / "zero.png", 0), write_turned(tmp_path / "nine.png", 9)):
        assert (open_header(path).size, open_header(path).frame_note) == ((40, 60), "")


@pytest.mark.parametrize(
    "dtype, suffix", [(np.uint16, "png"), (np.uint16, "tiff"), (np.int32, "tiff"), (np.float32, "tiff")]
)
def test_an_image_that_would_turn_white_is_refused(tmp_path, dtype, suffix):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray((np.arange(24).reshape(4, 6) * 2000).astype(dtype)).save(path)
    with Image.open(path) as image:
        assert np.asarray(image.convert("RGB")).max() == 255, "PIL clips"
        for check in (lambda: read_header(image).check_depth("images[0]"), lambda: to_upright_rgb(image, "images[0]")):
            with pytest.raises(ValueError, match=r"images\[0\]: got an image of mode .*more than 8 bits per channel"):
                check()


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_8_bits_is_read(mode):
    image = Image.fromarray(PIXELS).convert(mode)
    assert to_upright_rgb(image, "image").mode == "RGB"
