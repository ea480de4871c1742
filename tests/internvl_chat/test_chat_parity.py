"""Image features and logits of a tiny chat model equal those of the authors' code; skipped without the numbers."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from paths import PARITY
from safetensors.torch import save_file
from transformers import InternVLForConditionalGeneration

IMAGE_TOKEN = 2100

pytestmark = pytest.mark.skipif(not (PARITY / "internvl_chat_tiny.npz").is_file(), reason="no reference numbers here")


@torch.no_grad()
def test_features_and_logits_equal_those_of_the_authors_code(himtok, tmp_path):
    spec = importlib.util.spec_from_file_location("parity_weights", PARITY / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    shapes = json.loads((PARITY / "internvl_chat_tiny_shapes.json").read_text())
    source = tmp_path / "source"
    source.mkdir()
    state = {key: torch.from_numpy(weights.tensor(key, shape, seed=0)) for key, shape in shapes.items()}
    save_file(state, source / "model.safetensors")
    (source / "config.json").write_bytes((PARITY / "internvl_chat_tiny_config.json").read_bytes())
    options = ("--skip_tokenizer", "--image_token_id", IMAGE_TOKEN)
    assert himtok("convert", source, tmp_path / "out", *options)[0] == 0
    model = InternVLForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    numbers = np.load(PARITY / "internvl_chat_tiny.npz")
    pixels = torch.from_numpy(numbers["pixel_values"])
    features = model.get_image_features(pixels).pooler_output.numpy().reshape(numbers["image_features"].shape)
    assert np.abs(features - numbers["image_features"]).max() < 1e-4
    logits = model(input_ids=torch.from_numpy(numbers["input_ids"]).long(), pixel_values=pixels).logits.numpy()
    assert np.abs(logits - numbers["logits"]).max() < 1e-4
