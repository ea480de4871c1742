"""Boxes in answers are parsed in the template's scale: thousandths, or pixels of the image that it has resized."""

import importlib.util
from types import SimpleNamespace

import pytest
from PIL import Image
from swift.template import StdTemplateInputs
from tiny_bases import BASES

from himtok_plugin.metrics.boxes import box_iou
from himtok_plugin.swift_integration.answering.result_boxes import (
    add_boxes_to_result,
    get_norm_bbox,
    get_resized_image_size,
    parse_answer_boxes,
)

needs_qwen = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("qwen_vl_utils", "decord")),
    reason="ms-swift asks for qwen_vl_utils and decord",
)
QWEN = next(name for name in BASES if name.startswith("Qwen2.5-VL"))


class Resizing:
    """Stands in for a template that resizes the image to (h, w) = (96, 256) and writes boxes in its pixels."""

    norm_bbox = "none"

    def _preprocess_inputs(self, inputs):
        inputs.images = [Image.open(image) for image in inputs.images]

    def replace_tag(self, kind, index, inputs):
        inputs.images[index] = inputs.images[index].resize((256, 96))
        return []


def test_pixels_of_the_resized_image_are_converted(world):
    assert get_resized_image_size(Resizing(), str(world.image)) == (96, 256)
    (box,) = parse_answer_boxes("It is [16, 16, 80, 80].", str(world.image), Resizing())  # of (48, 64): h / 2, w / 4
    assert box == pytest.approx([4, 8, 20, 40])


def test_thousandths_need_no_resizing(world):
    template = SimpleNamespace(norm_bbox="norm1000")
    (box,) = parse_answer_boxes("(250,500),(500,1000)", str(world.image), template)
    assert box == pytest.approx([16, 24, 32, 48])


def test_results_have_boxes_if_there_are_true_ones(world):
    row = world.row("<image>Where?", "<bbox>", objects={"ref": [], "bbox": [[4, 8, 20, 40]]})
    row["messages"][-1] = {"role": "assistant", "content": "[16, 16, 80, 80] or [0, 0, 256, 96]"}
    add_boxes_to_result(row, row["messages"][-1]["content"], Resizing())
    assert row["target_boxes"] == [[4.0, 8.0, 20.0, 40.0]]
    assert row["boxes"] == [pytest.approx([4, 8, 20, 40]), pytest.approx([0, 0, 64, 48])]
    for other in (world.segment(world.left), world.row("<image>Segment <bbox>.", objects={"bbox": [[1, 2, 3, 4]]})):
        add_boxes_to_result(other, "[1, 2, 3, 4]", Resizing())
        assert "boxes" not in other and "target_boxes" not in other


def test_template_that_hides_its_image_size_yields_no_boxes(world):
    template = SimpleNamespace(norm_bbox="none", _preprocess_inputs=lambda i: None, replace_tag=lambda *_: [])
    row = world.row("<image>Where?", "<bbox>", objects={"ref": [], "bbox": [[4, 8, 20, 40]]})
    add_boxes_to_result(row, "[1, 2, 3, 4]", template)
    assert "boxes" not in row and "target_boxes" not in row


def test_scale_of_boxes_is_found_from_the_arguments():
    assert get_norm_bbox(SimpleNamespace(template="qwen2_5_vl")) == "none"
    assert get_norm_bbox(SimpleNamespace(template="internvl_hf")) == get_norm_bbox(SimpleNamespace(template="qwen3_vl"))
    assert get_norm_bbox(SimpleNamespace(template="internvl_hf")) == "norm1000"
    assert get_norm_bbox(SimpleNamespace(template="qwen2_5_vl", norm_bbox="norm1000")) == "norm1000"
    assert get_norm_bbox(SimpleNamespace(template=None, template_meta=None)) is None


@needs_qwen
def test_boxes_of_qwen2_5_vl_equal_those_that_its_template_has_written(world, tmp_path):
    from swift.arguments import InferArguments

    base = BASES[QWEN](tmp_path / QWEN)
    template = InferArguments(model=str(base), mask_tokenizer=str(world.mask_tokenizer)).get_template()
    image = tmp_path / "wide.png"
    Image.new("RGB", (1001, 317)).save(image)
    true = [100, 50, 700, 300]
    messages = [{"role": "user", "content": "<image>Where is it? <bbox>"}]
    inputs = StdTemplateInputs(messages=messages, images=[str(image)], objects={"bbox": [list(true)], "ref": []})
    template._preprocess_inputs(inputs)
    template.replace_tag("image", 0, inputs)
    template.normalize_bbox(inputs)
    written = inputs.objects["bbox"][0]
    assert written != true and template.norm_bbox == "none"
    (found,) = parse_answer_boxes(str(written), str(image), template)
    assert box_iou(found, true) > 0.99
