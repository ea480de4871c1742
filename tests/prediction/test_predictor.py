"""Answers decoded to masks: with and without recorded probabilities, one by one and in a batch."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from himtok_plugin.lmm.tiny_internvl import train_tokenizer
from himtok_plugin.lmm.vocabulary import MaskVocabulary, extend_tokenizer
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import from_square, load_mask
from himtok_plugin.prediction.calibration import Calibration, mask_certainty
from himtok_plugin.prediction.predictor import Answer, MaskPredictor

SIZE = (20, 30)
CODES = [3, 1, 7, 2]


@pytest.fixture(scope="module")
def tokenizer():
    model = tiny_model(seed=3)
    with torch.no_grad():
        model.quantize.embedding.weight.normal_(std=3)
        scale = 200  # an untrained de-tokenizer says about 0.5 everywhere
        model.pixel_decoder.conv_out.weight.mul_(scale)
    return model


def probabilities_of(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(count, 12, generator=generator)).softmax(-1)


def test_answer_without_a_mask_gives_an_empty_list(tokenizer):
    assert MaskPredictor(tokenizer)([Answer("There is no red circle.", SIZE)]) == [[]]
    assert MaskPredictor(tokenizer)([]) == []


def test_mask_without_a_code_gives_an_empty_list(tokenizer):
    assert MaskPredictor(tokenizer)([Answer("<|mt_start|><|mt_end|>", SIZE)]) == [[]]


def test_hard_decoding_is_the_mask_tokenizers_decode_resized_to_the_image(tokenizer):
    (mask,) = MaskPredictor(tokenizer, "hard")([Answer(codes_to_text(CODES), SIZE)])[0]
    square = tokenizer.decode(torch.tensor([CODES]))[0].detach().numpy()
    assert np.array_equal(mask.mask, from_square(square, SIZE))
    assert mask.mask.shape == SIZE and mask.mask.dtype == bool
    assert 0 < mask.mask.mean() < 1
    assert mask.codes == CODES and mask.complete and mask.score is None


def test_soft_decoding_uses_the_recorded_probabilities(tokenizer):
    probabilities = probabilities_of(4)
    answer = Answer(codes_to_text(CODES), SIZE, probabilities)
    (soft,) = MaskPredictor(tokenizer, "soft")([answer])[0]
    (hard,) = MaskPredictor(tokenizer, "hard")([answer])[0]
    square = tokenizer.decode_probabilities(probabilities[None])[0].detach().numpy()
    assert np.array_equal(soft.mask, from_square(square, SIZE))
    assert not np.array_equal(soft.mask, hard.mask)
    assert soft.score == pytest.approx(mask_certainty(square), abs=1e-6) and 0 < soft.score < 1


def test_soft_decoding_of_certain_codes_is_hard_decoding(tokenizer):
    certain = torch.nn.functional.one_hot(torch.tensor(CODES), 12).float()
    answer = Answer(codes_to_text(CODES), SIZE, certain)
    (soft,), (hard,) = (MaskPredictor(tokenizer, decoding)([answer])[0] for decoding in ("soft", "hard"))
    assert np.array_equal(soft.mask, hard.mask)
    assert soft.score == pytest.approx(hard.score, abs=1e-6)


def test_soft_decoding_without_probabilities_is_hard_decoding(tokenizer):
    answer = Answer(codes_to_text(CODES), SIZE)
    (soft,), (hard,) = (MaskPredictor(tokenizer, decoding)([answer])[0] for decoding in ("soft", "hard"))
    assert np.array_equal(soft.mask, hard.mask)


def test_a_cut_mask_is_decoded_from_its_prefix_and_marked_incomplete(tokenizer):
    text = codes_to_text(CODES).removesuffix("<|mt_2|><|mt_end|>")
    (mask,) = MaskPredictor(tokenizer, "hard")([Answer(text, SIZE)])[0]
    assert not mask.complete and mask.codes == CODES[:3]
    square = tokenizer.decode(torch.tensor([CODES[:3]]))[0].detach().numpy()
    assert np.array_equal(mask.mask, from_square(square, SIZE))


def test_threshold_decides_which_pixels_belong(tokenizer):
    answer = Answer(codes_to_text(CODES), SIZE)
    areas = [MaskPredictor(tokenizer, "hard", t)([answer])[0][0].mask.sum() for t in (0.1, 0.5, 0.9)]
    assert areas == sorted(areas, reverse=True) and areas[0] > areas[-1]


def test_soft_masks_can_be_resized_as_in_the_papers_code(tokenizer):
    probabilities = probabilities_of(4)
    answer = Answer(codes_to_text(CODES), SIZE, probabilities)
    (mask,) = MaskPredictor(tokenizer, resize="nearest")([answer])[0]
    square = tokenizer.decode_probabilities(probabilities[None])[0].detach().numpy()
    assert np.array_equal(mask.mask, from_square(square, SIZE, resample="nearest"))
    assert not np.array_equal(mask.mask, from_square(square, SIZE))


def test_unknown_decoding_is_rejected(tokenizer):
    with pytest.raises(ValueError, match="decoding='medium'"):
        MaskPredictor(tokenizer, "medium")


def test_batch_of_mixed_lengths_sizes_and_kinds_equals_one_by_one(tokenizer):
    two = codes_to_text([1]) + " and " + codes_to_text(CODES)
    answers = [
        Answer(two, SIZE, probabilities_of(5)),
        Answer("none", (7, 9)),
        Answer(codes_to_text([5, 6]), (9, 7)),
        Answer(codes_to_text([8, 9, 10]), SIZE, probabilities_of(3, seed=1)),
        Answer(codes_to_text([0, 11]), (64, 48)),
    ]
    predictor = MaskPredictor(tokenizer)
    together = predictor(answers)
    assert [len(masks) for masks in together] == [2, 0, 1, 1, 1]
    for answer, masks in zip(answers, together, strict=True):
        for one, other in zip(predictor([answer])[0], masks, strict=True):
            assert np.array_equal(one.mask, other.mask) and one.mask.shape == answer.size
            assert (one.codes, one.score, one.start, one.end) == (other.codes, other.score, other.start, other.end)
    assert two[together[0][1].start : together[0][1].end] == codes_to_text(CODES)


def test_probabilities_of_another_text_are_rejected(tokenizer):
    with pytest.raises(ValueError, match="probabilities: got those of 3 codes, expected 4 as in the text"):
        MaskPredictor(tokenizer)([Answer(codes_to_text(CODES), SIZE, probabilities_of(3))])


@pytest.fixture(scope="module")
def text_tokenizer():
    """A text tokenizer with the mask tokens of `tokenizer`."""
    text_tokenizer = train_tokenizer(["The mask appears at the large red circle."], 300)
    extend_tokenizer(text_tokenizer, 12)
    return text_tokenizer


def test_token_ids_make_the_same_answer_as_their_text(tokenizer, text_tokenizer):
    vocabulary = MaskVocabulary.of(text_tokenizer, 12)
    text = f"The mask {codes_to_text(CODES)} and {codes_to_text([5])}."
    ids = text_tokenizer(text + text_tokenizer.eos_token, add_special_tokens=False).input_ids
    probabilities = probabilities_of(5)
    answer = Answer.from_ids(ids, vocabulary, SIZE, probabilities, text_tokenizer)
    assert answer.text == text and answer.size == SIZE
    without_text = Answer.from_ids(torch.tensor(ids), vocabulary, SIZE, probabilities)
    assert without_text.text == f"\ufffd{codes_to_text(CODES)}\ufffd{codes_to_text([5])}\ufffd"
    predictor = MaskPredictor(tokenizer)
    expected, *found = predictor([Answer(text, SIZE, probabilities), answer, without_text])
    for masks in found:
        for one, other in zip(masks, expected, strict=True):
            assert np.array_equal(one.mask, other.mask)
            assert one.codes == other.codes and one.complete
            assert one.score == pytest.approx(other.score, abs=1e-5)


def test_text_within_a_mask_makes_it_malformed(tokenizer, text_tokenizer):
    vocabulary = MaskVocabulary.of(text_tokenizer, 12)
    ids = text_tokenizer("<|mt_start|><|mt_3|>red<|mt_1|><|mt_end|>", add_special_tokens=False).input_ids
    for given in (None, text_tokenizer):
        (mask,) = MaskPredictor(tokenizer)([Answer.from_ids(ids, vocabulary, SIZE, tokenizer=given)])[0]
        assert mask.codes == [3, 1] and not mask.complete


@pytest.mark.parametrize("ids", [[1.5], [[1, 2]], [True], torch.tensor(3), ["<|mt_1|>"]])
def test_ids_that_are_not_a_flat_list_of_integers_are_rejected(text_tokenizer, ids):
    with pytest.raises(ValueError, match=r"ids is .*: expected integers \(n,\)"):
        Answer.from_ids(ids, MaskVocabulary.of(text_tokenizer, 12), SIZE)


def test_a_text_tokenizer_of_another_vocabulary_is_rejected(text_tokenizer):
    moved = MaskVocabulary(start_id=1, end_id=2, first_code_id=3, codebook_size=12)
    with pytest.raises(ValueError, match=r"tokenizer: it decodes the ids to the codes \[\], expected \[4\]"):
        Answer.from_ids([1, 7, 2], moved, SIZE, tokenizer=text_tokenizer)


def test_json_form_holds_the_keys_of_the_contract(tokenizer):
    (mask,) = MaskPredictor(tokenizer)([Answer(codes_to_text(CODES), SIZE, probabilities_of(4))])[0]
    row = mask.to_dict()
    assert list(row) == ["size", "counts", "codes", "score", "complete"]
    assert row["size"] == list(SIZE) and isinstance(row["counts"], str) and isinstance(row["score"], float)
    assert np.array_equal(load_mask({"size": row["size"], "counts": row["counts"]}), mask.mask)


def test_calibrated_scores_are_the_expected_iou_beside_the_raw_score(tokenizer):
    answer = Answer(codes_to_text(CODES), SIZE, probabilities_of(4))
    (plain,) = MaskPredictor(tokenizer)([answer])[0]
    (mask,) = MaskPredictor(tokenizer, calibration=Calibration((0, 1), (0.1, 0.2)))([answer])[0]
    assert plain.raw_score is None and mask.raw_score == plain.score
    assert mask.score == pytest.approx(0.1 + 0.1 * plain.score)
    assert list(mask.to_dict()) == ["size", "counts", "codes", "score", "complete", "raw_score"]


def test_masks_below_min_score_are_dropped_and_masks_without_a_score_kept(tokenizer):
    text = codes_to_text([5]) + codes_to_text(CODES)
    answers = [Answer(text, SIZE, probabilities_of(5)), Answer(text, SIZE)]
    both = MaskPredictor(tokenizer)(answers)[0]
    less, more = sorted(both, key=lambda mask: mask.score)
    found, unscored = MaskPredictor(tokenizer, min_score=(less.score + more.score) / 2)(answers)
    assert [(mask.codes, mask.start) for mask in found] == [(more.codes, more.start)]
    assert [mask.codes for mask in unscored] == [[5], CODES]
    (everything,) = MaskPredictor(tokenizer, min_score=less.score)(answers[:1])
    assert len(everything) == 2


def test_mask_probabilities_are_kept_with_keep_squares(tokenizer):
    answer = Answer(codes_to_text(CODES), SIZE)
    (mask,) = MaskPredictor(tokenizer, keep_squares=True)([answer])[0]
    assert mask.square.shape == (16, 16) and np.array_equal(from_square(mask.square, SIZE), mask.mask)
    assert MaskPredictor(tokenizer)([answer])[0][0].square is None
