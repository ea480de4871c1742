"""Which samples ask for masks and boxes, and which of these belong to the last answer."""

import pytest

from himtok_plugin.evaluation.ground_truth import select_answer_boxes, select_answer_masks


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("masks", "texts", "asks", "expected"),
    [
        (["a"], ("Segment it.", "<mask>"), None, ["a"]),
        ([], ("Segment it.", "There is none."), None, []),  # a row without a target, as the README has it
        ([], ("Is it?", "Yes"), False, None),
        (["a"], ("What is <mask>?", "A dog."), None, None),
        (["a"], ("What is <mask>?", "A dog."), False, None),
        (["a"], ("Segment what is beside <mask>.", "There is nothing."), True, []),
        (["a", "b"], ("What is beside <mask>?", "<mask>"), None, ["b"]),
        (["a", "b"], ("Segment it.", "<mask>", "And beside?", "<mask>"), None, ["b"]),
        (["a"], ("Segment it.", "<mask>", "Thanks.", "Welcome."), None, None),
        (["a"], ("Segment it.",), None, ["a"]),  # before it is answered
        (["a"], ("Segment it.", "<mask>"), False, ["a"]),  # the answer says that it was
        (None, ("Is it?", "Yes"), None, None),
        (None, ("Is it?", "Yes"), True, None),
    ],
)
def test_masks_of_the_answer(masks, texts, asks, expected):
    assert select_answer_masks(masks, turns(*texts), asks) == expected


@pytest.mark.parametrize(
    ("objects", "texts", "expected"),
    [
        ({"bbox": [[1, 2, 3, 4]], "ref": []}, ("Where?", "<bbox>"), [[1.0, 2.0, 3.0, 4.0]]),
        ({"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}, ("Beside <bbox>?", "<bbox>"), [[5.0, 6.0, 7.0, 8.0]]),
        ({"bbox": [[1, 2, 3, 4]]}, ("Segment <bbox>.", "<mask>"), None),
        ({"bbox": [[0.5, 0, 1, 0.5]], "bbox_type": "norm1"}, ("Where?", "<bbox>"), [[32.0, 0.0, 64.0, 24.0]]),
        ({"bbox": [[3, 4]]}, ("Where?", "<bbox>"), None),  # a point
        ({"bbox": [[1, 2, 3, 4]], "image_id": [1]}, ("Where?", "<bbox>"), None),
        ({"bbox": []}, ("Where?", "Nowhere."), None),
        (None, ("Where?", "Nowhere."), None),
    ],
)
def test_boxes_of_the_answer(objects, texts, expected):
    assert select_answer_boxes(objects, turns(*texts), (48, 64)) == expected


def test_message_contents_that_are_not_text_have_no_placeholders():
    messages = [{"role": "user", "content": [{"type": "text", "text": "<mask>"}]}, {"role": "assistant"}]
    assert select_answer_masks(["a"], messages) == ["a"]
