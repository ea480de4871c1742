"""examples/09_real_base: the warm-up of the projector."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_parts import CATEGORIES, IMAGE_SIDE, coco_folder, load_weights
from transformers import AutoProcessor


def test_image_tokens_are_to_say_what_is_where(modules, base, tmp_path):
    from descriptions import LENGTH, NOTHING
    from warm_up import Descriptions, WordReader

    coco_folder(modules[1], tmp_path)  # 80 x 60 pixels; the second object covers rows 20 to 59 and columns 30 to 79
    data = Descriptions(tmp_path, AutoProcessor.from_pretrained(base), jitter=False)
    assert len(data) == 3 and data.grid == LENGTH and data.words[-1] == NOTHING
    pixels, words = data[1]
    assert pixels.shape == (3, IMAGE_SIDE, IMAGE_SIDE)
    read = [data.words[word] for word in words]
    nothing, dog = [NOTHING] * LENGTH, ["orange", "3", "9", "3", "9"]
    assert read == [*nothing, *dog * 4]  # the first fifth of the rows ends at 12

    embeddings = torch.randn(50, 64, generator=torch.Generator().manual_seed(1))
    reader = WordReader(embeddings, [[1], [2, 3], [4]])
    words = torch.tensor([[0, 2, 1, 2]])
    exact = reader.words[words]
    torch.testing.assert_close(exact[0, 2], embeddings[2:4].mean(0))
    assert reader(exact).argmax(-1).equal(words)
    assert reader.loss(exact, words) < reader.loss(exact + 0.5, words) < reader.loss(exact.flip(1), words)


def test_of_the_classes_in_a_place_the_one_with_most_of_its_area_is_described(modules, base, tmp_path):
    from warm_up import Descriptions

    photographs, masks = modules[1], np.zeros((2, 100, 100), bool)
    masks[0], masks[1, 20:40, 30:50] = True, True
    regions = [photographs.Region(mask, category["id"], 0) for mask, category in zip(masks, CATEGORIES, strict=True)]
    photograph = photographs.Photograph(1, Image.new("RGB", (100, 100)), tuple(regions))
    photographs.write_photographs(tmp_path, [photograph], CATEGORIES)
    data = Descriptions(tmp_path, AutoProcessor.from_pretrained(base), jitter=False)
    _, words = data[0]
    everywhere, small = ["dog", "0", "9", "0", "9"], ["orange", "2", "3", "3", "4"]
    assert [data.words[word] for word in words] == [*everywhere, *small, *everywhere * 3]


def test_a_grid_that_no_description_fits_is_refused(modules, base, tmp_path):
    from warm_up import Descriptions

    coco_folder(modules[1], tmp_path)
    processor = AutoProcessor.from_pretrained(base)
    processor.image_processor.size["height"] = 64
    with pytest.raises(ValueError, match="image_size: got 2 image tokens in a row, expected a multiple of 5"):
        Descriptions(tmp_path, processor, jitter=False)[0]


def test_the_warm_up_trains_the_projector_and_the_last_stages(modules, base, tmp_path):
    import warm_up
    from descriptions import PARTS

    coco_folder(modules[1], tmp_path / "coco")  # fewer photographs than a batch
    out = tmp_path / "out"
    warm_up.warm_up(base, tmp_path / "coco", tmp_path / "coco", out, frozen_blocks=1, steps=40, seed=0)
    lines = [json.loads(line) for line in (out / "warm_up.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 40, 40] and lines[1]["loss"] < lines[0]["loss"]
    assert [line.get("photographs") for line in lines] == [None, None, "held out", "train"]
    assert set(lines[2]) == {"step", "photographs", *PARTS, "nothing", "recall", "precision", "loss"}
    assert lines[2] | {"photographs": "train"} == pytest.approx(lines[3], abs=0.2)  # the same, in other colours
    before, after = load_weights(base), load_weights(out)
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all("timm_model" in name or "multi_modal_projector" in name for name in changed)
    assert not any("conv_stem" in name or "running" in name for name in changed)
    assert AutoProcessor.from_pretrained(out).patch_size == AutoProcessor.from_pretrained(base).patch_size


@pytest.mark.parametrize("steps", [1, 10])
def test_a_trial_of_the_warm_up_may_be_short(modules, base, tmp_path, steps):
    import warm_up

    coco_folder(modules[1], tmp_path / "coco")
    out = tmp_path / "out"
    warm_up.warm_up(base, tmp_path / "coco", tmp_path / "coco", out, frozen_blocks=1, steps=steps, seed=0)
    lines = [json.loads(line) for line in (out / "warm_up.jsonl").read_text().splitlines()]
    assert [(line["step"], line["photographs"]) for line in lines] == [(steps, "held out"), (steps, "train")]
