"""DPO and KTO: `MaskTrainer` does not run there, so the template encodes the masks of every row."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from runs import COMMON, LMM, flags, logged, mask_of, write_rows

from himtok_plugin import MaskTokenizer
from himtok_plugin.mask_text import codes_to_text, text_to_codes
from himtok_plugin.masks import load_mask, to_square


@pytest.fixture
def rlhf(world, tmp_path):
    """Return a function that runs one step of `swift rlhf` on rows."""

    def run(rows, **options):
        from swift.pipelines import rlhf_main

        names = {"model": world.lmm, "mask_tokenizer": world.mask_tokenizer, "output_dir": tmp_path / "out"}
        names["dataset"] = write_rows(tmp_path / "rows.jsonl", rows)
        return rlhf_main(
            flags(**{**COMMON, "per_device_train_batch_size": 2, "max_steps": 1, **LMM, **names, **options})
        )

    return run


@pytest.fixture
def pairs(world, monkeypatch):
    """Collect the codes in the texts of every encoded pair, in order: [(chosen, rejected)]."""
    from himtok_plugin.swift_integration.samples.template import MaskTemplateMixin

    seen, encode = [], MaskTemplateMixin._rlhf_encode

    def observed(self, *args, **kwargs):
        encoded = encode(self, *args, **kwargs)
        texts = [self.tokenizer.decode(encoded[f"{which}_input_ids"]) for which in ("chosen", "rejected")]
        seen.append(tuple([span.codes for span in text_to_codes(text, 12, 4)] for text in texts))
        return encoded

    monkeypatch.setattr(MaskTemplateMixin, "_rlhf_encode", observed)
    return seen


@pytest.fixture(scope="module")
def codes_of(world):
    tokenizer = MaskTokenizer.from_pretrained(world.mask_tokenizer)

    def encode(*masks):
        return tokenizer.encode(torch.from_numpy(np.stack([to_square(mask, 16) for mask in masks]))).tolist()

    return encode


def test_masks_of_the_rejected_answer_come_after_those_of_the_chosen_one(world, rlhf, pairs, codes_of):
    between = mask_of(48, 64, 20, 30, 20, 40)
    row = world.row("<image>What is beside <mask>?", "Here <mask>.", masks=[between, world.left, world.right])
    assert logged(rlhf([{**row, "rejected_response": "No, there <mask>."}] * 4, rlhf_type="dpo"), "loss")
    asked, left, right = codes_of(between, world.left, world.right)
    assert left != right and all(pair == ([asked, left], [asked, right]) for pair in pairs)


def test_answers_with_the_same_text_can_have_different_masks(world, rlhf, pairs, codes_of):
    """The rejected answer is a whole message, because ms-swift refuses a rejected_response with the same text."""
    row = world.row("<image>Which?", "Here <mask>.", masks=[world.left, world.right])
    row |= {"rejected_messages": row["messages"], "rejected_images": row["images"]}
    assert logged(rlhf([row] * 4, rlhf_type="dpo"), "loss")
    left, right = codes_of(world.left, world.right)
    assert all(pair == ([left], [right]) for pair in pairs)


@pytest.mark.parametrize(("rejected", "own"), [("No, there.", 0), ("<mask> <mask>", 2)])
def test_masks_that_neither_answer_has_are_refused(world, rlhf, rejected, own):
    row = world.row("<image>Which?", "Here <mask>.", masks=[world.left, world.right])
    message = f"messages hold 1 <mask>, the rejected answer {own} more, masks holds 2: expected one mask for each"
    with pytest.raises(ValueError, match=rf"rows\.jsonl: row \d: {re.escape(message)}"):
        rlhf([{**row, "rejected_response": rejected}] * 2, rlhf_type="dpo")


def test_kto_pairs_answers_with_their_masks(world, rlhf, pairs, codes_of, tmp_path):
    """KTO compares a row's answer with that of another row, whose image has another size here."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "small.png")
    small = mask_of(32, 32, 2, 30, 20, 30)
    rows = [
        {**world.row("<image>Which?", "Here <mask>.", masks=[world.left]), "label": True},
        {**world.row("<image>And?", "Here <mask>.", masks=[small]), "images": [str(tmp_path / "small.png")]},
    ]
    rows[1]["label"] = False
    assert logged(rlhf(rows, rlhf_type="kto"), "loss")
    left, other = codes_of(world.left, small)
    assert {str(pair) for pair in pairs} == {str(([left], [other])), str(([other], [left]))}


def test_preference_rows_train_on_real_codes(world, rlhf, tmp_path, monkeypatch):
    from swift.rlhf_trainers import DPOTrainer

    row = world.segment(world.left)
    rows = [{**row, "rejected_response": "There is no such shape."}] * 4
    seen = []
    collate = DPOTrainer.get_batch_loss_metrics

    def spy(self, model, batch, *args, **kwargs):
        seen.append({key: value.clone() for key, value in batch.items() if isinstance(value, torch.Tensor)})
        self.himtok_texts = self.template.tokenizer.batch_decode(batch["input_ids"])
        seen[-1]["texts"] = self.himtok_texts
        return collate(self, model, batch, *args, **kwargs)

    monkeypatch.setattr(DPOTrainer, "get_batch_loss_metrics", spy)
    result = rlhf(rows, rlhf_type="dpo", save_strategy="steps", save_steps=1)
    assert logged(result, "loss")
    tokenizer = MaskTokenizer.from_pretrained(tmp_path / "out" / "checkpoint-1" / "mask_tokenizer")
    square = torch.from_numpy(to_square(load_mask(world.left), tokenizer.config.image_size))[None]
    text = codes_to_text(tokenizer.encode(square)[0].tolist())
    assert sum(text in answer for answer in seen[0]["texts"]) == 2
    assert not [key for key in seen[0] if key.startswith("himtok_")]
