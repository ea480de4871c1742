"""`--refiner` with ms-swift's own engine: by a model prompted with the masks, or by questions about crops."""

import numpy as np
import pytest
from runs import infer, read_rows, write_rows

from himtok_plugin import Segmenter
from himtok_plugin.masks import load_mask
from himtok_plugin.prediction.refinement import SamRefiner, choose_zoom_window
from himtok_plugin.swift_integration.answering import refining


@pytest.fixture(scope="module")
def rows(world):
    return read_rows(world.scenes)


@pytest.fixture(scope="module")
def plain(stage_two, world, tmp_path_factory):
    """Result rows without a refiner."""
    return infer(world.scenes, tmp_path_factory.mktemp("plain") / "out.jsonl", model=stage_two[1], max_batch_size=8)


def masks_of(row):
    return [load_mask({key: mask[key] for key in ("size", "counts")}) for mask in row["masks"]]


class Inverter:
    """Stands in for SAM: records its inputs and returns the complement of each mask."""

    def __init__(self):
        self.shown = []

    def __call__(self, image, masks, squares):
        self.shown.append((image, masks, squares))
        return [~mask for mask in masks]


@pytest.fixture
def inverter(monkeypatch):
    inverter = Inverter()
    monkeypatch.setattr(SamRefiner, "from_pretrained", lambda kind, weights, device: inverter)
    return inverter


def test_results_have_refined_masks_and_all_else_stays(stage_two, world, plain, tmp_path, inverter):
    rows = infer(
        world.scenes, tmp_path / "out.jsonl", model=stage_two[1], max_batch_size=8, refiner="sam2", refiner_model="x"
    )
    for row, before in zip(rows, plain, strict=True):
        assert row["response"] == before["response"]
        for mask, first in zip(masks_of(row), masks_of(before), strict=True):
            assert np.array_equal(mask, ~first)
        assert [mask["codes"] for mask in row["masks"]] == [mask["codes"] for mask in before["masks"]]
    assert len(inverter.shown) == sum(bool(row["masks"]) for row in plain)
    image, masks, squares = inverter.shown[0]
    assert image.size == (64, 64) and masks[0].shape == (64, 64) and squares[0].shape == (16, 16)


def test_streamed_answers_are_refined_as_well(stage_two, world, plain, tmp_path, inverter):
    rows = infer(world.scenes, tmp_path / "out.jsonl", model=stage_two[1], stream=True, refiner="sam")
    for row, before in zip(rows, plain, strict=True):
        assert all(np.array_equal(a, ~b) for a, b in zip(masks_of(row), masks_of(before), strict=True))


def test_refinement_uses_the_original_image_if_the_template_shrinks_it(stage_two, world, tmp_path, inverter):
    rows = [world.row("<image>Segment the large red triangle.")]
    infer(
        write_rows(tmp_path / "rows.jsonl", rows),
        tmp_path / "out.jsonl",
        model=stage_two[1],
        max_pixels=32 * 32,
        refiner="sam",
    )
    assert all(image.size == (64, 48) for image, _, _ in inverter.shown)


def test_zoom_asks_the_same_about_the_crop_around_each_mask(stage_two, rows, monkeypatch):
    segmenter = Segmenter.from_pretrained(stage_two[1], max_new_tokens=48, refiner="zoom")
    asked = []
    about_crop = refining._make_crop_request

    def observed(messages, image, window):
        asked.append(about_crop(messages, image, window))
        return asked[-1]

    monkeypatch.setattr(refining, "_make_crop_request", observed)
    images = [row["images"][0] for row in rows]
    questions = [row["messages"][0]["content"] for row in rows]
    refined = segmenter(images, questions)
    first = Segmenter.from_pretrained(stage_two[1], max_new_tokens=48)(images, questions)
    windows = [window for result in first for mask in result.masks if (window := choose_zoom_window(mask)) is not None]
    assert windows and [request["images"][0].size for request in asked] == [
        (x2 - x1, y2 - y1) for x1, y1, x2, y2 in windows
    ]
    assert all(request["messages"][-1]["content"] in questions for request in asked)
    for one, other in zip(refined, first, strict=True):
        assert one.text == other.text and one.masks.shape == other.masks.shape and one.codes == other.codes
        for mask, before in zip(one.masks, other.masks, strict=True):
            window = choose_zoom_window(before)
            if window is None:
                assert np.array_equal(mask, before)
            else:
                x1, y1, x2, y2 = window
                outside = mask.copy()
                outside[y1:y2, x1:x2] = False
                assert not outside.any() and (mask & before).any()


def test_answers_to_questions_with_masks_or_boxes_stay_unrefined(stage_two, world, monkeypatch):
    segmenter = Segmenter.from_pretrained(stage_two[1], max_new_tokens=48, refiner="zoom")
    monkeypatch.setattr(refining, "_make_crop_request", lambda *_: pytest.fail("asked again"))
    first = segmenter(world.image, "Segment what is beside <mask>.", masks=[world.left])
    segmenter(world.image, "Segment what is in <bbox>.", boxes=[[4, 8, 20, 40]])
    segmenter(world.image, "the small blue square", history=first)


def test_images_inside_messages_are_found():
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Segment it."}]
    request = {"messages": [{"role": "user", "content": content}]}
    messages, images = refining.normalize_request(request)
    assert messages == [{"role": "user", "content": "<image>Segment it."}] and images == ["a.png"]
    assert request["messages"][0]["content"] is content
