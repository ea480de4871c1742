"""The page of `himtok prepare check --html`: samples with their masks in the image and in the text."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from himtok_plugin.data.check.page import write_sample_page
from himtok_plugin.data.generated.shapes import COLOURS as SHAPE_COLORS
from himtok_plugin.masks import to_rle
from himtok_plugin.masks.drawing import COLORS, choose_colors

SIZE = (48, 64)
SCALE = 4  # small images are enlarged
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
    assert picture.shape == (SIZE[0] * SCALE, SIZE[1] * SCALE, 3)
    changed = np.abs(picture - 90).sum(axis=2)[::SCALE, ::SCALE]
    assert changed[MASK].mean() > 20 * changed[~MASK].mean()


def test_boxes_are_drawn(sample, page_of):
    plain, boxed, normalized = pictures_in(
        page_of(
            sample(masks=[], answer="None."),
            sample(masks=[], answer="<bbox>", objects={"ref": [], "bbox": [[8, 4, 40, 36]]}),
            sample(masks=[], answer="<bbox>", objects={"bbox": [[0.5, 0.5, 1, 1]], "bbox_type": "norm1"}),
        )
    )
    assert np.abs(plain - 90).max() < 8
    changed = np.abs(boxed - plain).sum(axis=2)
    assert changed[4 * SCALE, 10 * SCALE : 38 * SCALE].min() > 60 > changed[16 * SCALE : 24 * SCALE, 20 * SCALE].max()
    assert np.abs(normalized - plain)[24 * SCALE, 34 * SCALE : 60 * SCALE].sum(axis=1).min() > 60


def test_boxes_in_the_text_are_numbered_in_their_colors(sample, page_of):
    objects = {"ref": [], "bbox": [[8, 4, 40, 36], [50, 40]]}
    page = page_of(sample("<mask>, its box <bbox>.", "<image>What is at <bbox>?", objects=objects))
    assert re.findall(r">((?:mask|box) \d)<", page) == ["box 0", "mask 0", "box 1"]
    assert len(set(re.findall(r"background: (rgb\(\d+, \d+, \d+\))", page))) == 3
    assert "&lt;bbox&gt;" not in page


def test_colors_differ_from_the_objects_below(sample, page_of, tmp_path):
    halves = [MASK.copy(), MASK.copy()]
    halves[0][:, 35:] = False
    halves[1][:, :35] = False
    for color in (*COLORS, *SHAPE_COLORS.values()):
        pixels = np.full((*SIZE, 3), 90, np.uint8)
        pixels[MASK] = color
        chosen = choose_colors(pixels, halves)
        assert chosen[0] != chosen[1]
        assert min(np.abs(np.subtract(each, color)).sum() for each in chosen) > 150
    Image.fromarray(pixels).save(tmp_path / "shape.png")
    (shown,) = pictures_in(page_of(sample(images=["shape.png"])))
    inside = shown[20 * SCALE, 35 * SCALE]
    assert np.abs(inside - SHAPE_COLORS["cyan"]).max() < 70  # its own color is still seen


def test_more_masks_than_colors_are_drawn():
    image = np.zeros((*SIZE, 3), np.uint8)
    colors = choose_colors(image, [MASK, np.zeros(SIZE, bool)] * 5)
    assert len(colors) == 10 and set(colors) <= set(COLORS)


def test_masks_in_the_text_are_numbered_over_all_messages_in_their_colors(sample, page_of):
    page = page_of(sample("<mask> and <mask>", "<image>What is beside <mask>?", masks=[to_rle(MASK)] * 3))
    assert re.findall(r">mask (\d)<", page) == ["0", "1", "2"]
    assert len(set(re.findall(r"background: (rgb\(\d+, \d+, \d+\))", page))) == 3
    assert 'beside <span class="mention"' in page and "</span> and <span" in page and "</span>?</p>" in page


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
