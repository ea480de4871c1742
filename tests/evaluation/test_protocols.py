"""Protocols applied to pixels and to run lengths, which must agree."""

import numpy as np
import pytest

from himtok_plugin.data.joined_expressions import joined_expressions, joined_question
from himtok_plugin.evaluation.protocols import PROTOCOLS, Protocol, find_protocol, resize_square
from himtok_plugin.masks.run_lengths import Runs
from himtok_plugin.metrics.segmentation import Overlap


def row(text):
    return np.array([[c == "#" for c in text]])


def counts(protocol, prediction, target, ignore=None):
    runs = [[Runs.from_mask(mask)] if mask is not None else [] for mask in (prediction, target, ignore)]
    overlap = find_protocol(protocol).overlap(*runs, target.shape)
    pair = find_protocol(protocol).pair(prediction, target, ignore)
    assert overlap == Overlap.of(*pair)
    return overlap


def test_lisa_leaves_ignored_pixels_out_and_himtok_counts_them_as_found():
    prediction, target, ignore = row("##...."), row(".##..."), row("#..##.")
    assert counts("lisa", prediction, target, ignore) == Overlap(1, 1, 2)
    assert counts("himtok", prediction, target, ignore) == Overlap(4, 4, 5)  # pixels 0, 1, 3, 4 of both
    assert counts("lisa", prediction, target) == counts("himtok", prediction, target) == Overlap(1, 2, 2)


def test_an_empty_prediction_is_right_where_all_of_the_target_is_ignored():
    assert counts("lisa", row("...."), row("##.."), row("##..")).iou == 1.0
    assert counts("himtok", row("...."), row("##.."), row("##..")).iou == 1.0


@pytest.mark.parametrize(("pixels", "predicted"), [(49, 0), (50, 50)])
def test_fewer_than_50_pixels_count_as_no_target_only_under_that_rule(pixels, predicted):
    prediction = np.zeros((10, 10), bool)
    prediction.flat[:pixels] = True
    nothing = np.zeros_like(prediction)
    assert counts("grefcoco-50px", prediction, nothing).predicted == predicted
    assert counts("grefcoco", prediction, nothing).predicted == pixels


def test_protocols_ask_their_own_questions():
    joined = joined_question(["red dog", "left"])
    assert joined == "Segment <ref>Meet all the descriptions: 1. red dog. 2. left. </ref>."
    assert joined_expressions(["left"]) == "Meet all the descriptions: 1. left. "
    find_protocol("all-sentences").check_question(f"<image>{joined}", ["red dog", "left"])
    find_protocol("all-sentences").check_question(f"<image>\n{joined}")
    find_protocol("per-sentence").check_question("Segment the red dog.")
    find_protocol("plain").check_question(joined)
    with pytest.raises(ValueError, match="expected one expression, without 'Meet all"):
        find_protocol("per-sentence").check_question(joined)


@pytest.mark.parametrize(
    ("question", "expressions"),
    [
        ("Segment the red dog.", None),
        ("Segment the red dog.", ["the red dog"]),  # the paper wraps a single one as well
        ("Please segment the object. Meet all the descriptions: 1. red dog. 2. left. ", None),
        ("Please segment the object. Meet all the descriptions: 1. red dog. 2. left. ", ["red dog", "left"]),
        (joined_question(["red dog"]), ["red dog", "left"]),
    ],
)
def test_joined_questions_must_match_the_papers_code_exactly(question, expressions):
    with pytest.raises(ValueError, match="expected 'Segment <ref>Meet all .*</ref>.' under the protocol 'all-sent"):
        find_protocol("all-sentences").check_question(question, expressions)


@pytest.mark.parametrize("protocol", ["lisa", "himtok"])
def test_reason_seg_protocols_require_the_first_text_if_it_is_known(protocol):
    texts = ["What can one sit on?", "the place to rest"]
    find_protocol(protocol).check_question("<image>What can one sit on? Answer with a mask.", texts)
    find_protocol(protocol).check_question("<image>Segment the place to rest.")  # of a row that does not tell
    with pytest.raises(ValueError, match=f"the first of its expressions, 'What can one sit on.' under .*'{protocol}'"):
        find_protocol(protocol).check_question("<image>Segment the place to rest.", texts)
    with pytest.raises(ValueError, match="expected one expression, without"):
        find_protocol(protocol).check_question(joined_question(texts), texts)


def test_protocols_are_found_by_name_and_unknown_names_rejected():
    assert all(find_protocol(name).name == name and protocol.summary for name, protocol in PROTOCOLS.items())
    with pytest.raises(ValueError, match="protocol: got 'lisaa', expected one of plain, per-sentence"):
        find_protocol("lisaa")


def test_masks_of_another_size_are_rejected():
    with pytest.raises(ValueError, match="expected"):
        Protocol("x", "").overlap([Runs.empty((4, 5))], [Runs.empty((5, 4))], [], (5, 4))


def test_nearest_copies_pixels_and_bilinear_does_not():
    square = np.array([[0.0, 1.0], [0.5, 0.5]], np.float32)
    nearest = resize_square(square, (4, 4), 0.5, "nearest")
    assert np.array_equal(nearest, np.array([[0, 0, 1, 1]] * 2 + [[0] * 4] * 2, bool))  # above 0.5, not at it
    assert not np.array_equal(resize_square(square, (4, 4), 0.5, "bilinear"), nearest)
    with pytest.raises(ValueError, match="resize: got 'cubic', expected one of bilinear, nearest"):
        resize_square(square, (4, 4), 0.5, "cubic")
