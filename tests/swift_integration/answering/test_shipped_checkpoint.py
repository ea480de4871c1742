"""The checkpoint in the package: small, plain, and good at what its model card says."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

from himtok_plugin import MaskTokenizer, Segmenter
from himtok_plugin.data.generated.scenes import generate_masks, generate_scenes
from himtok_plugin.masks import to_square
from himtok_plugin.metrics.reconstruction import ReconstructionMetrics, reconstruction_scores
from himtok_plugin.metrics.segmentation import SegmentationMetrics
from himtok_plugin.resources import default_checkpoint

MOST_BYTES = 15e6
UNSEEN_SEED = 1234  # neither of the recipe's


def test_is_small_and_in_half_precision():
    files = [path for path in default_checkpoint().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    weights = [path for path in files if path.suffix == ".safetensors"]
    assert len(weights) == 2
    for path in weights:
        with safe_open(path, "pt") as opened:
            assert {opened.get_slice(key).get_dtype() for key in opened.keys()} == {"F16"}
    names = {path.name for path in files}
    assert not names & {"args.json", "trainer_state.json", "optimizer.pt"}  # they describe the machine of the training


def test_tokenizer_is_loaded_in_full_precision_and_restores_shapes():
    tokenizer = MaskTokenizer.from_pretrained("demo")
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32} and not tokenizer.training
    scores = reconstruction_scores(tokenizer, generate_masks(100, UNSEEN_SEED))
    ious = [score["gIoU"] for score in scores.values()]
    assert ious == sorted(ious) and ious[-1] > 0.86  # the card says 0.876


def test_searched_codes_restore_shapes_better():
    tokenizer = MaskTokenizer.from_pretrained("demo")
    masks = list(generate_masks(6, UNSEEN_SEED))
    squares = torch.from_numpy(np.stack([to_square(mask, tokenizer.config.image_size) for mask in masks]))
    metrics = ReconstructionMetrics(tokenizer.config.num_mask_tokens)
    metrics.update(tokenizer, tokenizer.encode(squares, candidates=4, decodes=40), masks)
    *_, searched = metrics.compute().values()
    assert searched["gIoU"] > 0.9  # the card says 0.952, of twice the candidates and passes


def test_loads_with_plain_transformers():
    folder = default_checkpoint()
    model = AutoModelForImageTextToText.from_pretrained(folder)
    words = AutoProcessor.from_pretrained(folder).tokenizer.get_vocab()
    codes = MaskTokenizer.from_pretrained("demo").config.codebook_size
    assert f"<|mt_{codes - 1}|>" in words and f"<|mt_{codes}|>" not in words
    assert model.get_input_embeddings().weight.shape[0] >= len(words)


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained("default", device="cpu")


def test_segments_scenes_that_it_has_not_seen(segmenter):
    scenes = list(generate_scenes(48, UNSEEN_SEED))
    results = segmenter([s.image for s in scenes], [f"Segment {s.expression.text}." for s in scenes])
    metrics = SegmentationMetrics(boundary=False)
    for scene, result in zip(scenes, results, strict=True):
        empty = np.zeros((scene.image.height, scene.image.width), bool)
        truth = np.logical_or.reduce([empty, *scene.masks])
        metrics.update(np.logical_or.reduce([empty, *result.masks]), truth, missing=not len(result) and truth.any())
    scores = metrics.compute()
    assert scores["gIoU"] > 0.8 and scores["T-acc"] > 0.95


def test_says_which_words_it_does_not_know(segmenter):
    (scene,) = generate_scenes(1, UNSEEN_SEED)
    results = segmenter([scene.image] * 3, ["the bus", "Find the photo of a STAR!", scene.expression.text])
    assert [result.unknown_words for result in results] == [["bus"], ["Find", "photo"], []]


def test_card_names_data_recipe_figures_limits_and_licence():
    card = Path(default_checkpoint().parent, "README.md").read_text(encoding="utf-8")
    parts = {
        "What the LMM knows",
        "Data",
        "Recipe",
        "Figures",
        "Limits",
        "The mask tokenizer for real masks",
        "Licence",
    }
    assert parts <= set(re.findall(r"^## (.+)$", card, re.MULTILINE))
