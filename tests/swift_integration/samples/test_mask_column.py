"""Raw rows are converted to the form that ms-swift's preprocessing accepts."""

import pytest

from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn, pack_mask_column

REFERENCE = codes_to_text([0] * 32)  # how the reference's rows say `<mask>`


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"query": REFERENCE, "response": "a dog"}, {"query": "<mask>", "response": "a dog"}),
        ({"problem": "it", "answer": REFERENCE}, {"problem": "it", "answer": "<mask>"}),
        (
            {"history": [[REFERENCE, "a dog"]], "query": "and it?"},
            {"history": [["<mask>", "a dog"]], "query": "and it?"},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": REFERENCE}], "loss": None}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "<mask>"}], "loss": None}]},
        ),
    ],
)
def test_placeholders_of_the_reference_are_replaced_in_every_text(text, expected):
    packed = pack_mask_column({**text, "masks": ["a.png"]})
    assert MaskColumn.parse(packed.pop("masks")).masks == ["a.png"]
    assert packed == expected


def test_row_with_masks_only_gets_a_message():
    assert pack_mask_column({"mask": ["a.png", "b.png"]})["messages"] == [{"role": "user", "content": "<mask>" * 2}]
