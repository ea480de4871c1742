"""The phrase of a question, and the masks of each answer of a training row."""

import pytest

from himtok_plugin.evaluation.phrases import NO_PHRASE, find_phrase, list_answers, normalize_question
from himtok_plugin.mask_text import codes_to_text


def messages(*texts):
    return [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * len(texts), texts, strict=False)
    ]


@pytest.mark.parametrize(
    "question",
    [
        "Segment the road.",
        "<image>Segment  the\nRoad!",
        "<image><image>\nsegment THE road",
        "Can you segment the road?",
        "Where is the road? Answer with a segmentation mask.",
        "the road",
    ],
)
def test_case_spaces_punctuation_and_wording_do_not_matter(question):
    assert normalize_question(question) == "the road"


@pytest.mark.parametrize(
    ("question", "phrase"),
    [
        ("Segment all wine glasses.", "wine glasses"),
        ("Output one mask per wine glass.", "wine glasses"),  # the union of all masks is scored
        ("Segment every single wine glass.", "wine glasses"),
        ("What can be drunk? Please output the segmentation mask.", "what can be drunk"),
        ("Segment the object in the box <bbox>.", "the object in the box <bbox>"),
        (f"What is left of {codes_to_text([1, 2])}?", "what is left of <mask>"),
        ("Segment.", "segment"),
        ("分割道路。", "分割道路"),
        ("", NO_PHRASE),
    ],
)
def test_phrases(question, phrase):
    assert normalize_question(question) == phrase


def test_the_phrase_of_a_result_is_that_of_its_last_question():
    row = {"messages": messages("<image>Segment a.", "<mask>", "And b?", "<|mt_start|><|mt_1|><|mt_end|>")}
    assert find_phrase(row) == "and b"
    assert find_phrase({"messages": row["messages"][:3]}) == "and b"
    assert find_phrase({"masks": []}) == NO_PHRASE


def test_references_are_filled_in_in_their_order():
    texts = messages("<ref-object>?", "It is <mask>.", "Segment <ref-object> and <ref-object>.", "<mask>")
    row = {"messages": texts, "objects": {"ref": ["cat", "the dog", "a bird"], "bbox": []}, "masks": ["a", "b"]}
    assert find_phrase(row) == "the dog and a bird"
    assert list_answers(row) == [("cat", ["a"]), ("the dog and a bird", ["b"])]
    assert find_phrase({**row, "objects": {"ref": ["cat"]}}) == "<ref-object> and <ref-object>"


def test_every_turn_has_its_own_masks():
    texts = messages("What is beside <mask>?", "A cat.", "Segment both.", "<mask> and <mask>", "And c?", "None.")
    row = {"messages": texts, "masks": ["q", "a", "b"]}
    assert list_answers(row) == [("what is beside <mask>", []), ("both", ["a", "b"]), ("and c", [])]


def test_answers_without_masks_count_where_masks_are_asked_for():
    row = {"messages": messages("Segment it.", "It is not there."), "masks": []}
    assert list_answers(row) == [("it", [])]
    assert list_answers({**row, "asks_for_masks": False}) == []
    assert list_answers({**row, "masks": None}) == []  # a question about text


def test_rows_without_text_or_without_an_answer():
    assert list_answers({"masks": ["a", "b"]}) == [(NO_PHRASE, ["a"]), (NO_PHRASE, ["b"])]
    assert list_answers({"messages": messages("Segment it."), "masks": ["a", "b"]}) == [("it", ["a", "b"])]


def test_rows_of_the_papers_code():
    placeholder = codes_to_text([0] * 32)
    row = {
        "image": "a.jpg",
        "mask": ["a", "b"],
        "conversations": [
            {"from": "human", "value": "<image>\nSegment the road."},
            {"from": "gpt", "value": f"Sure, {placeholder} and {placeholder}."},
        ],
    }
    assert list_answers(row) == [("the road", ["a", "b"])]


def test_too_few_masks_are_refused():
    with pytest.raises(ValueError, match="r: messages hold 2 <mask>, masks holds 1: expected one for each"):
        list_answers({"messages": messages("Segment it.", "<mask><mask>"), "masks": ["a"]}, "r")
