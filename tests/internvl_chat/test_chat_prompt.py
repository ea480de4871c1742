"""The questions that the released model was evaluated with."""

import pytest

from himtok_plugin.internvl_chat.chat_prompt import PROMPTS, format_prompt


def test_expressions_are_inserted_into_named_prompts():
    assert set(PROMPTS) == {"segmentation", "reasoning_segmentation", "box", "mask_then_box"}
    assert format_prompt("segmentation", " road ") == "Segment <ref>road</ref>."
    phrase, sentence = (format_prompt("reasoning_segmentation", text) for text in ("a cold place", "Where is it cold?"))
    assert phrase == "What is a cold place?\nWhat is the object and mask in the image?"
    assert sentence == "Where is it cold?\nWhat is the object and mask in the image?"
    assert format_prompt("mask_then_box", "a cat").startswith(
        "First create the segmentation mask for <ref>a cat</ref>, then"
    )
    assert all("the {odd} one" in format_prompt(name, "the {odd} one") for name in PROMPTS)
    with pytest.raises(ValueError, match="prompt: got 'count', expected one of"):
        format_prompt("count", "dogs")
    with pytest.raises(ValueError, match="expected a description of an object"):
        format_prompt("box", " ")
