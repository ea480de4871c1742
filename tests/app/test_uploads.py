"""Images that users give: upright, at two sizes, within limits; anything else is a sentence."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from states import SETTINGS, image_file, noise

from himtok_plugin.app.uploads import SCREEN_SIDE, fit_size, read_upload


def test_a_photograph_is_turned_upright_and_drawn_at_the_size_of_a_screen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image = noise((1500, 2000))
    image.paste((255, 0, 0), (0, 0, 200, 200))
    path = image_file(tmp_path, name="photo.jpg", image=image, exif=exif)
    upload = read_upload(path, SETTINGS)
    assert upload.size == (2000, 1500) and upload.screen.size == (960, SCREEN_SIDE)
    assert upload.open_full().size == (1500, 2000)
    red, green, blue = np.array(upload.screen)[40, -40]  # the corner that the camera had at its top left
    assert red > 200 and green < 60 and blue < 60
    assert upload.content == path.read_bytes()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_images_of_all_modes_are_drawn_in_rgb(tmp_path, mode):
    upload = read_upload(image_file(tmp_path, image=noise().convert(mode)), SETTINGS)
    assert upload.screen.mode == "RGB" and upload.open_full().mode == "RGB"


def test_a_file_that_is_no_image_is_refused(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("these are notes")
    with pytest.raises(ValueError, match=r"image: got 'notes.png', which cannot be read as an image, expected a file"):
        read_upload(path, SETTINGS)


def test_a_truncated_image_is_refused(tmp_path):
    path = image_file(tmp_path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="which is damaged"):
        read_upload(path, SETTINGS)


def test_an_image_of_16_bits_is_refused(tmp_path):
    path = image_file(tmp_path, image=Image.fromarray(np.full((8, 8), 40000, np.uint16)))
    with pytest.raises(ValueError, match="image: got an image of mode I;16"):
        read_upload(path, SETTINGS)


def test_images_beyond_the_servers_limits_are_refused(tmp_path):
    path = image_file(tmp_path)
    with pytest.raises(ValueError, match="with 128 x 96 pixels, expected at most 1000"):
        read_upload(path, dataclasses.replace(SETTINGS, max_image_pixels=1000))
    with pytest.raises(ValueError, match="bytes, expected at most"):
        read_upload(path, dataclasses.replace(SETTINGS, max_request_bytes=2**16 + 400))


def test_small_images_keep_their_size_and_thin_ones_a_pixel():
    assert fit_size((10, 20)) == (10, 20) and fit_size((1, 10_000)) == (1, SCREEN_SIDE)
