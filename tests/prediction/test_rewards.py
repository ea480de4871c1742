"""Rewards of hand-written answers, with a tiny mask tokenizer."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import from_square
from himtok_plugin.metrics.segmentation import mask_iou
from himtok_plugin.prediction.rewards import MaskIoUReward, mask_count_reward, mask_format_reward, no_target_reward

SIZE = (20, 30)
FIRST, SECOND, THIRD = (codes_to_text(codes) for codes in ([1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0]))


@pytest.fixture(scope="module")
def tokenizer():
    model = tiny_model(seed=1)
    with torch.no_grad():  # spread, so that different codes give different masks of both kinds of pixels
        model.quantize.embedding.weight.normal_()
        model.pixel_decoder.conv_out.weight.mul_(20)
    return model.eval()


@pytest.fixture(scope="module")
def decoded(tokenizer):
    """What codes decode to, one mask at a time and without the class under test."""

    def decode(*codes):
        with torch.no_grad():
            return from_square(tokenizer.decode(torch.tensor([codes]))[0].numpy(), SIZE)

    return decode


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        (f"It is {FIRST}, beside {SECOND}.", 1.0),
        ("There is no such shape.", 1.0),
        (FIRST.removesuffix("<|mt_end|>"), 0.0),  # cut
        (f"{FIRST} <|mt_3|>", 0.0),  # a code outside
        ("<|mt_start|><|mt_end|>", 0.0),
        (codes_to_text([12]), 0.0),  # not in the codebook
        (codes_to_text([1, 2, 3, 4, 5]), 0.0),  # more tokens than the mask tokenizer has
        (f"{FIRST} <|mt_07|>", 0.0),  # looks like a token, is none
        (f"{SECOND}<|mt_star", 0.0),
    ],
)
def test_format_reward_is_1_only_if_all_masks_are_legal_and_complete(text, reward):
    assert mask_format_reward(text, codebook_size=12, num_mask_tokens=4) == reward


@pytest.mark.parametrize(
    ("text", "true", "reward"),
    [("none", 0, 1.0), ("none", 2, 0.0), (FIRST, 0, 0.0), (FIRST, 2, 0.5), (FIRST * 3, 2, 2 / 3), (FIRST * 2, 2, 1.0)],
)
def test_count_reward_is_the_ratio_of_the_numbers_of_masks(text, true, reward):
    assert mask_count_reward(text, true) == pytest.approx(reward)


def test_no_target_reward_is_1_if_the_answer_has_a_mask_exactly_when_there_is_a_target():
    assert [no_target_reward(text, target) for text in ("none", FIRST) for target in (False, True)] == [
        1.0,
        0.0,
        0.0,
        1.0,
    ]


def test_iou_reward_is_the_iou_of_the_decoded_codes(tokenizer, decoded):
    target = decoded(5, 6, 7, 8)
    prediction = decoded(1, 2, 3, 4)
    assert target.any() and not target.all() and not np.array_equal(prediction, target)
    reward = MaskIoUReward(tokenizer, prefix_weight=0)
    texts = [f"It is {SECOND}.", f"It is {FIRST}.", "There is none."]
    assert reward(texts, [[target]] * 3) == pytest.approx([1.0, mask_iou(prediction, target), 0.0])


def test_prefixes_have_their_share_of_the_reward(tokenizer, decoded):
    target = decoded(5, 6, 7, 8)
    ious = [mask_iou(decoded(*(5, 6, 7, 8)[:n]), target) for n in (1, 2)]
    (found,) = MaskIoUReward(tokenizer, prefix_weight=0.4)([SECOND], [[target]])
    assert found == pytest.approx(0.6 + 0.4 * sum(ious) / 2)
    (single,) = MaskIoUReward(tokenizer, prefix_weight=0.4)([codes_to_text([5])], [[target]])
    assert single == pytest.approx(ious[0])  # one token has no prefix


def test_a_cut_mask_is_rewarded_for_the_tokens_it_has(tokenizer, decoded):
    target = decoded(5, 6, 7, 8)
    whole, prefixes = MaskIoUReward(tokenizer, 0.0), MaskIoUReward(tokenizer, 1.0)
    cut = "<|mt_start|><|mt_5|><|mt_6|>"  # an answer that was cut is worth what is there
    assert whole([cut], [[target]]) == pytest.approx([mask_iou(decoded(5, 6), target)])
    assert prefixes([cut], [[target]]) == pytest.approx([mask_iou(decoded(5), target)])


def test_several_masks_are_matched_and_surplus_or_missing_ones_count_as_0(tokenizer, decoded):
    first, second = decoded(1, 2, 3, 4), decoded(5, 6, 7, 8)
    reward = MaskIoUReward(tokenizer, prefix_weight=0)
    swapped, alone = reward([SECOND + FIRST, FIRST], [[first, second]] * 2)
    assert swapped == pytest.approx(1.0)
    assert alone == pytest.approx(0.5)  # the other one is missing
    assert reward([FIRST * 2], [[first]]) == pytest.approx([0.5])


def test_without_a_target_only_an_answer_without_a_mask_is_rewarded(tokenizer):
    empty = np.zeros(SIZE, bool)
    reward = MaskIoUReward(tokenizer)
    assert reward(["There is none.", FIRST], [[], []]) == [1.0, 0.0]
    assert reward(["There is none.", FIRST], [[empty], [empty]]) == [1.0, 0.0]


def test_equal_codes_are_decoded_once_and_all_answers_of_a_length_together(tokenizer, decoded, monkeypatch):
    batches = []
    decode = type(tokenizer).decode
    monkeypatch.setattr(
        type(tokenizer), "decode", lambda self, codes: (batches.append(len(codes)), decode(self, codes))[1]
    )
    target = [decoded(5, 6, 7, 8)]
    batches.clear()
    MaskIoUReward(tokenizer, prefix_weight=0)([FIRST, SECOND, THIRD, FIRST], [target] * 4)
    assert batches == [3]


def test_a_mask_tokenizer_in_training_stays_in_training(tokenizer, decoded):
    target = [decoded(5, 6, 7, 8)]
    tokenizer.train()
    try:
        MaskIoUReward(tokenizer)([SECOND], [target])
        assert tokenizer.training
    finally:
        tokenizer.eval()


@pytest.mark.parametrize("weight", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_rejected(tokenizer, weight):
    with pytest.raises(ValueError, match="prefix_weight: got"):
        MaskIoUReward(tokenizer, weight)
