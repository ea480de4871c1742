"""examples/09_real_base: the base model of two pretrained parts."""

import pytest
import torch
from PIL import Image
from tiny_parts import ARCHITECTURE, IMAGE_SIDE, IMAGE_TOKENS
from transformers import AutoModelForImageTextToText, AutoProcessor


def test_plain_transformers_loads_the_base_model(base):
    model, processor = AutoModelForImageTextToText.from_pretrained(base), AutoProcessor.from_pretrained(base)
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>\nHi<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(images=Image.new("RGB", (30, 50)), text=text, return_tensors="pt")
    assert (inputs.input_ids == model.config.image_token_id).sum() == IMAGE_TOKENS
    assert inputs.pixel_values.shape == (1, 3, IMAGE_SIDE, IMAGE_SIDE)
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert model.generate(**inputs, max_new_tokens=2, min_new_tokens=2).shape[1] == inputs.input_ids.shape[1] + 2


def test_weights_are_renamed_by_order_and_checked(modules):
    base_model, _, _ = modules
    expected = {"stem.weight": torch.zeros(2, 3), "bn.bias": torch.zeros(2)}
    weights = {"_s.weight": torch.ones(2, 3), "_b.bias": torch.ones(2)}
    assert list(base_model.rename_weights(weights, expected)) == ["stem.weight", "bn.bias"]
    with pytest.raises(ValueError, match="got 1 tensors, expected 2"):
        base_model.rename_weights({"_s.weight": torch.ones(2, 3)}, expected)
    with pytest.raises(ValueError, match=r"got _s.weight of shape \(3, 2\), expected stem.weight of shape \(2, 3\)"):
        base_model.rename_weights({**weights, "_s.weight": torch.ones(3, 2)}, expected)
    with pytest.raises(ValueError, match=r"got _b.weight"):
        base_model.rename_weights({"_s.weight": torch.ones(2, 3), "_b.weight": torch.ones(2)}, expected)


def test_a_missing_package_is_named(modules):
    with pytest.raises(ValueError, match="no_such_package is not installed"):
        modules[0].find_package_file("no_such_package", "*")


def test_weights_of_the_vision_tower_are_those_given(modules):
    timm = pytest.importorskip("timm")
    base_model, _, _ = modules
    torch.manual_seed(1)
    network = timm.create_model(ARCHITECTURE).eval()
    weights = {f"_{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(network.state_dict().items())}
    tower = base_model.build_vision_tower(ARCHITECTURE, weights).eval()
    pixels = torch.rand(1, 3, IMAGE_SIDE, IMAGE_SIDE)
    with torch.no_grad():
        assert torch.equal(tower(pixels).last_hidden_state, network.forward_features(pixels))
