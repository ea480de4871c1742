"""What the browser gets to draw, and the text beside it."""

import re

import numpy as np
from fake_client import SIZE, TOKENS, known_prefix
from states import answer, conversation_of

from himtok_plugin.app.answer_text import write_conversation
from himtok_plugin.app.stage import describe_image, describe_layers, scale_mask
from himtok_plugin.masks.rle import rle_to_mask


def text_of(conversation):
    return write_conversation(conversation)


def test_layers_hold_masks_and_their_prefixes_in_the_size_of_the_screen(tmp_path):
    size = 1920, 2560
    conversation = conversation_of(tmp_path, size, name="large.jpg")
    answer(conversation)
    scene = describe_layers(conversation)
    (layer,) = scene["layers"]
    assert scene["size"] == [960, 1280] and describe_image(conversation.image)["size"] == [1280, 960]
    assert sorted(layer["prefixes"]) == ["1", "2", "3"] and layer["tokens"] == TOKENS == scene["tokens"]
    shown = rle_to_mask(layer["prefixes"]["2"], scene["size"])
    assert np.array_equal(shown, known_prefix(size, 0, 2)[1::2, 1::2])


def test_the_mask_that_is_being_written_is_a_layer(tmp_path):
    conversation = conversation_of(tmp_path)
    turn = conversation.start_turn("Segment it.")
    turn.open_prefixes[2] = answer(conversation_of(tmp_path)).masks[0].prefixes[2]
    (layer,) = describe_layers(conversation)["layers"]
    assert layer["id"] == "open" and layer["tokens"] == 2


def test_boxes_in_an_answer_are_drawn_if_they_are_thousandths(tmp_path):
    conversation = conversation_of(tmp_path)
    turn = conversation.start_turn("Where is it?")
    turn.answer = "At [100, 200, 300, 400], not at [100, 200, 3000, 400]."
    assert describe_layers(conversation)["boxes"] == [[0.1, 0.2, 0.3, 0.4]]


def test_scaling_takes_the_pixel_at_the_same_place():
    mask = np.zeros((4, 6), bool)
    mask[2:, 3:] = True
    assert scale_mask(mask, (2, 2)).tolist() == [[False, False], [False, True]]
    assert np.array_equal(scale_mask(mask, (8, 12)), np.kron(mask, np.ones((2, 2), bool)))


def test_masks_are_chips_and_text_is_escaped(tmp_path):
    conversation = conversation_of(tmp_path)
    turn = answer(conversation, "Segment <b>it</b>.", labels=("<i>thing</i>",))
    turn.answer = "<script>alert(1)</script> <ref>the <dog</ref> " + turn.answer
    text = text_of(conversation)
    assert "<|mt_" not in text and "<script" not in text and "<b>" not in text and "<i>" not in text
    assert re.search(r'<button[^>]*data-layer="m0"[^>]*>&lt;i&gt;thing&lt;/i&gt; <small>0.90</small></button>', text)


def test_what_is_to_be_known_about_an_answer_is_said(tmp_path):
    conversation = conversation_of(tmp_path)
    turn = answer(conversation, scores=(0.3, 0.9), labels=("first", "second"))
    turn.unknown_words, turn.is_cut = ["bus"], True
    text = text_of(conversation)
    assert (
        "had the word" in text
        and "bus" in text
        and "Uncertain, with a score below 0.5: first." in text
        and "maximum number" in text
    )


def test_a_mask_in_the_text_that_the_server_has_dropped_is_a_chip_without_a_switch(tmp_path):
    conversation = conversation_of(tmp_path)
    turn = answer(conversation, scores=(0.9, 0.9), labels=("first", "second"))
    turn.masks.pop(0)
    text = text_of(conversation)
    assert text.count("mask without a drawing") == 1 and text.count("data-layer") == 1


def test_prefixes_of_another_size_keep_the_place_of_the_mask(tmp_path):
    assert known_prefix(SIZE, 0, 1).sum() > known_prefix(SIZE, 0, TOKENS).sum()
    conversation = conversation_of(tmp_path, (50, 3000), name="wide.png")
    answer(conversation)
    scene = describe_layers(conversation)
    assert rle_to_mask(scene["layers"][0]["counts"], scene["size"]).shape == (21, 1280)
