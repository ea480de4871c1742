"""tiny_internvl.py: Auto classes load the folder, an image is one tile, patches have different positions."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from himtok_plugin.lmm.tiny_internvl import LMM_SIZES, TinyLmmSize, build_tiny_internvl, train_tokenizer

TEXTS = ["Segment the small red circle.", "The mask appears at <mask>.", "There is no yellow star in the image."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny_internvl(tmp_path_factory.mktemp("lmm"), TEXTS, size="nano")


def test_auto_classes_load_the_folder_and_the_model_runs(folder):
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    inputs = processor(images=[Image.new("RGB", (50, 70))], text=["<IMG_CONTEXT>\nSegment."], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64)
    assert (inputs["input_ids"] == model.config.image_token_id).sum() == LMM_SIZES["nano"].image_tokens == 16
    assert model(**inputs).logits.shape[-1] >= len(processor.tokenizer)


@pytest.mark.parametrize("size", [(64, 64), (300, 100), (100, 300)])
def test_an_image_of_any_shape_is_one_tile_even_if_tiles_are_requested(folder, size):
    image_processor = AutoProcessor.from_pretrained(folder).image_processor
    outputs = image_processor(images=[Image.new("RGB", size)], crop_to_patches=True, return_tensors="pt")
    assert outputs["pixel_values"].shape[0] == 1


def test_chat_template_puts_the_image_before_the_question(folder):
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": "Segment."}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<IMG_CONTEXT>\nSegment.<|im_end|>\n<|im_start|>assistant\n"


def test_tokenizer_encodes_any_text_and_training_texts_in_few_tokens():
    tokenizer = train_tokenizer(TEXTS * 5, vocabulary=400)
    for text in (*TEXTS, "Zürich ∑ 图"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(TEXTS[0])["input_ids"]) <= 6
    assert len(tokenizer("<IMG_CONTEXT><|im_end|>")["input_ids"]) == 2


def test_the_seed_determines_the_weights(tmp_path, folder):
    def weights(path):
        return AutoModelForImageTextToText.from_pretrained(path).state_dict()

    again, other = (build_tiny_internvl(tmp_path / str(s), TEXTS, size="nano", seed=s) for s in (0, 1))
    first, same, different = weights(folder), weights(again), weights(other)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], different[name]) for name in first)


def test_patch_positions_differ_from_the_start(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder)
    positions = model.model.vision_tower.embeddings.position_embeddings[0, 1:]
    distances = torch.cdist(positions, positions) + torch.eye(len(positions)) * 1e3
    assert distances.min() > 0.05


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden": 30, "heads": 4}, "hidden"),
        ({"vision_hidden": 6, "vision_heads": 3}, "vision_hidden"),
        ({"image_size": 60}, "image_size"),
        ({"vocabulary": 100}, "vocabulary"),
    ],
)
def test_impossible_sizes_are_named(changes, field):
    good = {"hidden": 32, "layers": 1, "heads": 2, "vision_hidden": 32, "vision_layers": 1, "vision_heads": 2}
    with pytest.raises(ValueError, match=field):
        TinyLmmSize(**{**good, **changes})


def test_unknown_size_name_is_named(tmp_path):
    with pytest.raises(ValueError, match="size: got 'huge'"):
        build_tiny_internvl(tmp_path, TEXTS, size="huge")
