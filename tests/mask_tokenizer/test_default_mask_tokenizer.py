"""The mask tokenizer that ships with the package: small, and good at masks that it has not seen."""

import numpy as np
import pytest
import torch
from safetensors import safe_open

from himtok_plugin import MaskTokenizer
from himtok_plugin.benchmarks.reconstruction import coco_size, measure_mask_tokenizer
from himtok_plugin.data.generated.object_masks import generate_object_masks
from himtok_plugin.data.generated.scenes import generate_masks
from himtok_plugin.resources import default_checkpoint, default_mask_tokenizer

MOST_BYTES = 25e6
UNSEEN_SEED = 1234  # not one of the recipe's


@pytest.fixture(scope="module")
def tokenizer():
    return MaskTokenizer.from_pretrained("default")


def test_is_small_and_in_half_precision_and_loaded_in_full(tokenizer):
    weights = default_mask_tokenizer() / "model.safetensors"
    assert weights.stat().st_size < MOST_BYTES
    with safe_open(weights, "pt") as opened:
        assert {opened.get_slice(key).get_dtype() for key in opened.keys()} == {"F16"}
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32} and not tokenizer.training
    assert sorted(path.name for path in default_mask_tokenizer().iterdir()) == ["config.json", "model.safetensors"]


def test_demo_names_the_tokenizer_of_the_shipped_lmm(tokenizer):
    demo = MaskTokenizer.from_pretrained("demo")
    sidecar = MaskTokenizer.from_pretrained(default_checkpoint() / "mask_tokenizer")
    assert torch.equal(demo.quantize.codebook(), sidecar.quantize.codebook())
    assert demo.config.code_scheme != tokenizer.config.code_scheme


@pytest.mark.parametrize(
    ("generate", "least"), [(generate_masks, 0.90), (generate_object_masks, 0.85)], ids=["scenes", "objects"]
)
def test_masks_come_back_and_never_worse_with_more_tokens(tokenizer, generate, least):
    result = measure_mask_tokenizer(tokenizer, generate(64, UNSEEN_SEED))
    ious = [*result["mean_iou"]["all"].values()]
    assert ious == sorted(ious) and ious[-1] > least
    assert result["distinct_codes"] > 15  # of 16: nearly every token says something


def test_a_search_finds_better_codes(tokenizer):
    masks = list(generate_object_masks(96, UNSEEN_SEED))
    found, searched = (
        measure_mask_tokenizer(tokenizer, masks, candidates)["mean_iou"]["all"][16] for candidates in (1, 8)
    )
    assert searched > found


def test_sizes_are_those_of_coco():
    def square(side):
        mask = np.zeros((128, 128), bool)
        mask[:side, :side] = True
        return mask

    assert [coco_size(square(side)) for side in (31, 32, 95, 96)] == ["small", "medium", "medium", "large"]
