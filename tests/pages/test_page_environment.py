"""Pages escape every value, embed their pictures and refuse values that are missing."""

import base64
import io

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from himtok_plugin.pages.environment import page_environment, picture_data_uri, render_page


def test_text_is_escaped_and_what_utf_8_cannot_encode_becomes_a_question_mark():
    page = render_page("base.html.j2", title="<script>alert('&')</script> caf\u00e9 \ud800").decode()
    assert "<script>" not in page and page.count("&lt;script&gt;") == 2  # title and heading
    assert "caf\u00e9 ?" in page and page.startswith("<!DOCTYPE html>")


def test_missing_values_raise_an_error():
    with pytest.raises(UndefinedError, match="title"):
        render_page("base.html.j2")


def test_a_picture_in_a_page_is_the_picture():
    picture = Image.new("RGB", (7, 5), (200, 30, 60))
    start, data = picture_data_uri(picture).split(",")
    assert start == "data:image/jpeg;base64"
    read = Image.open(io.BytesIO(base64.b64decode(data)))
    assert read.size == (7, 5) and np.abs(np.asarray(read).astype(int) - (200, 30, 60)).max() < 8


def test_every_template_extends_the_shared_page():
    templates = page_environment().list_templates(["j2"])
    assert len(templates) == 3
    for name in set(templates) - {"base.html.j2"}:
        source, *_ = page_environment().loader.get_source(page_environment(), name)
        assert '{% extends "base.html.j2" %}' in source
