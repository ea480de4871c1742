"""`parse_messages`: the texts of rows in all forms that ms-swift trains on."""

import pytest

from himtok_plugin.data.messages import parse_messages
from himtok_plugin.mask_text import codes_to_text

TEXTS = [("user", "<image>Segment it."), ("assistant", "It is <mask>.")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": role, "content": text} for role, text in TEXTS]},
        {
            "conversations": [
                {"from": "human", "value": TEXTS[0][1]},
                {"from": "gpt", "value": f"It is {codes_to_text([0] * 32)}."},
            ]
        },
        {"messages": [{"from": "user", "value": TEXTS[0][1]}, {"role": "bot", "content": TEXTS[1][1]}]},
        {"conversation": [{"gpt": TEXTS[1][1], "human": TEXTS[0][1]}]},
        {"query": TEXTS[0][1], "response": TEXTS[1][1]},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Segment it."}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "It is <mask>."}]},
            ]
        },
    ],
)
def test_a_conversation_is_the_same_in_every_form(row):
    assert parse_messages(row) == TEXTS


def test_the_history_comes_before_the_question():
    row = {"history": [["a", "b"], ["c", None]], "instruction": "d", "input": "e", "output": "f"}
    roles, texts = zip(*parse_messages(row), strict=True)
    assert texts == ("a", "b", "c", "d", "e", "f") and roles[1] == roles[-1] == "assistant"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "messages is 'text': expected a list"),
        ([{"role": "robot", "content": "x"}], r"messages\[0\] is .*: expected a role and its content"),
        ([{"role": "user", "content": [{"type": "sound"}]}], r"messages\[0\] is"),
        ([{"user": "x"}], r"messages\[0\] is"),
        (["x"], r"messages\[0\] is 'x'"),
    ],
)
def test_other_forms_are_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        parse_messages({"messages": messages})
