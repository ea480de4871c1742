"""The page of `himtok prepare check --html`: samples with their masks in the image and in the text."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from himtok_plugin.data.check.page import write_sample_page
from himtok_plugin.masks import to_rle

SIZE = (48, 64)
MASK = np.zeros(SIZE, bool)
MASK[10:30, 20:50] = True


@pytest.fixture
def sample(tmp_path):
    image = tmp_path / "image.png"
    Image.new("RGB", SIZE[::-1], (90, 90, 90)).save(image)

    def make(answer="It is <mask>.", question="<image>Segment it.", **fields):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": messages, "images": [str(image)], "masks": [to_rle(MASK)], **fields}

    return make


@pytest.fixture
def page_of(tmp_path):
    def write(*samples):
        path = tmp_path / "pages" / "page.html"
        lines = [(i, json.dumps(row).encode()) for i, row in enumerate(samples, start=1)]
        write_sample_page(lines, path, "rows.jsonl: all rows", tmp_path)
        return path.read_text(encoding="utf-8")

    return write


def pictures_in(page):
    for data in re.findall(r"base64,([^\"]+)", page):
        yield np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")).astype(int)


def test_the_picture_is_the_image_with_its_masks(sample, page_of):
    (picture,) = pictures_in(page_of(sample()))
    changed = np.abs(picture - 90).sum(axis=2)
    assert picture.shape == (*SIZE, 3) and changed[MASK].mean() > 20 * changed[~MASK].mean()


def test_boxes_are_drawn(sample, page_of):
    plain, boxed, normalized = pictures_in(
        page_of(
            sample(masks=[], answer="None."),
            sample(masks=[], answer="<bbox>", objects={"ref": [], "bbox": [[8, 4, 40, 36]]}),
            sample(masks=[], answer="<bbox>", objects={"bbox": [[0.5, 0.5, 1, 1]], "bbox_type": "norm1"}),
        )
    )
    assert np.abs(plain - 90).max() < 8
    assert np.abs(boxed - plain)[4, 10:38].sum(axis=1).min() > 60 > np.abs(boxed - plain)[16:24, 20:28].max()
    assert np.abs(normalized - plain)[24, 34:60].sum(axis=1).min() > 60


def test_masks_in_the_text_are_numbered_over_all_messages_in_their_colors(sample, page_of):
    page = page_of(sample("<mask> and <mask>", "<image>What is beside <mask>?", masks=[to_rle(MASK)] * 3))
    assert re.findall(r">mask (\d)<", page) == ["0", "1", "2"]
    assert len(set(re.findall(r"background: (rgb\(\d+, \d+, \d+\))", page))) == 3
    assert 'beside <span class="mask"' in page and "</span> and <span" in page and "</span>?</p>" in page


def test_text_of_samples_is_never_html(sample, page_of):
    page = page_of(sample("<mask> <script>alert(1)</script>", source={"dataset": "<b>", "split": "train", "x": None}))
    assert "<script>" not in page and "&lt;script&gt;" in page and "row 1: &lt;b&gt;, train" in page


def test_a_sample_that_cannot_be_drawn_shows_why_beside_the_others(sample, page_of):
    page = page_of(sample(images=["no.jpg"]), sample(), {"masks": [to_rle(MASK)]}, {"messages": 3})
    assert page.count("<article>") == 4 and "FileNotFoundError" in page
    assert page.count('class="fault"') == 2 and len(list(pictures_in(page))) == 2


def test_the_seed_decides_which_samples_are_shown(sample, tmp_path, himtok):
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    rows.write_text("\n".join(json.dumps(sample(f"Number {n} is <mask>.")) for n in range(40)))
    shown = []
    for seed in (0, 0, 1):
        status, out, _ = himtok(
            "prepare", "check", rows, "--num_workers", 0, "--html", page, "--samples", 5, "--seed", seed
        )
        assert status == 0 and str(page) in out
        shown.append(re.findall(r"row (\d+)<", page.read_text(encoding="utf-8")))
    assert shown[0] == shown[1] != shown[2] and len(shown[0]) == 5
