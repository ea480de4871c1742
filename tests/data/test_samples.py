"""The size of a sample's first image."""

from pathlib import Path

import pytest
from PIL import Image

from himtok_plugin.data.samples import first_image_size

SIZE = (24, 20)


@pytest.mark.parametrize(
    "columns",
    [{"images": ["i.png"]}, {"image": "i.png"}, {"images": [{"path": "i.png", "bytes": None}]}],
    ids=["images", "image", "dictionary"],
)
def test_size_of_the_first_image_is_found_in_every_form(tmp_path, monkeypatch, columns):
    monkeypatch.chdir(tmp_path)
    assert first_image_size(columns) is None
    Image.new("RGB", SIZE[::-1]).save("i.png")
    assert first_image_size(columns) == SIZE
    Path("i.png").write_text("no image")
    assert first_image_size(columns) is None


@pytest.mark.parametrize(
    "columns", [{}, {"images": []}, {"images": None}, {"images": ["https://nowhere/i.png"]}], ids=str
)
def test_without_an_image_file_the_size_is_none(columns):
    assert first_image_size(columns) is None
