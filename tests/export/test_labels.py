"""What masks are called: the answer's labels, classes, expressions of questions."""

import pytest
from hard_masks import ring
from result_files import entry, result

from himtok_plugin.export.labels import find_expression, name_masks


@pytest.mark.parametrize(
    ("question", "expression"),
    [
        ("Segment the left cup.", "the left cup"),
        ("Where is the left cup? Answer with a segmentation mask.", "the left cup"),
        ("segment all blue shapes", "blue shapes"),
        ("Segment every single dog.", "dog"),
        ("left cup", "left cup"),
        ("What is used to cut bread?", None),
        ("", None),
    ],
)
def test_the_expression_of_a_question_is_found_in_the_known_phrasings(question, expression):
    assert find_expression(question) == expression


def names(question, text=None, **further):
    masks = [entry(ring(), code=1), entry(ring(), code=2)]
    return [(name.label, name.expression) for name in name_masks(result("a", question, masks, text, **further), masks)]


def test_labels_come_from_the_answer_then_the_class_then_the_question():
    answer = "<ref>left cup</ref>{0}, right: {1}"
    assert names("Segment the cups.", answer) == [("left cup", "the cups"), ("right", "the cups")]
    assert names("Segment all mice.", category="mouse") == [("mouse", "mice")] * 2
    assert names("Segment the cup.") == [("cup", "the cup")] * 2
    assert names("Please segment <ref>the cup</ref> now!") == [("cup", "the cup")] * 2
    assert names("What holds tea?") == [(None, "What holds tea?")] * 2


def test_a_mask_left_out_by_its_score_does_not_shift_the_labels():
    row = result("a", "Segment all.", [entry(ring(), code=1), entry(ring(), code=2)], "cup: {0}\nhat: {1}")
    assert [name.label for name in name_masks(row, row["masks"][1:])] == ["hat"]
