"""What a tab keeps: turns, the request made from them, and what is no question."""

import re

import numpy as np
import pytest
from fake_client import SIZE, TOKENS, FakeClient, known_prefix
from states import answer, conversation_of

from himtok_plugin.app.asking import ask_server
from himtok_plugin.app.mask_requests import asks_for_masks
from himtok_plugin.app.session import Session
from himtok_plugin.client import ServerUnreachableError
from himtok_plugin.data.prompts import Prompts
from himtok_plugin.masks.rle import rle_to_mask

BOX = {"kind": "box", "x1": 0.25, "y1": 0.25, "x2": 0.5, "y2": 0.75}


@pytest.fixture
def conversation(tmp_path):
    return conversation_of(tmp_path)


@pytest.mark.parametrize("question", ["", "   ", "<mask>", " ?"])
def test_a_question_without_words_is_refused(conversation, question):
    with pytest.raises(ValueError, match="question: got no words"):
        conversation.start_turn(question, [BOX] * question.count("<mask>"))
    assert not conversation.turns


@pytest.mark.parametrize(("question", "regions"), [("Describe <mask>.", []), ("Describe it.", [BOX])])
def test_every_region_has_one_placeholder(conversation, question, regions):
    with pytest.raises(ValueError, match="expected one <mask> for each region"):
        conversation.start_turn(question, regions)


def test_regions_of_all_turns_stay_within_the_servers_limit(conversation):
    answer(conversation, "Segment <mask>.", regions=[BOX])
    with pytest.raises(ValueError, match="regions: got 2 in this conversation, expected at most 1"):
        conversation.start_turn("Describe <mask>.", [BOX], max_masks=1)


def test_a_further_question_has_the_turns_and_regions_before_it(conversation):
    first = answer(conversation, "Segment <mask>.", regions=[BOX])
    conversation.start_turn("And <mask>?", [{"kind": "click", "x": 0.5, "y": 0.5, "mask": first.masks[0].id}])
    assert [message["content"] for message in conversation.messages()] == [
        "Segment <mask>.",
        first.answer,
        "And <mask>?",
    ]
    box, clicked = (rle_to_mask(rle["counts"], rle["size"]) for rle in conversation.region_masks())
    assert box.sum() == (SIZE[0] // 2) * (SIZE[1] // 4)
    assert np.array_equal(clicked, known_prefix(SIZE, 0, TOKENS))


@pytest.mark.parametrize("change", [{"error": "server: gone"}, {"is_stopped": True}])
def test_a_turn_without_a_whole_answer_is_not_asked_again(conversation, change):
    failed = conversation.start_turn("Segment <mask>.", [BOX])
    failed.answer, failed.is_finished = "It is <|mt_start|>", True
    vars(failed).update(change)
    conversation.start_turn("Segment the dog.")
    assert [message["content"] for message in conversation.messages()] == ["Segment the dog."]
    assert not conversation.region_masks()


def test_an_answer_collects_masks_with_a_prefix_of_every_number_of_tokens(conversation):
    turn = conversation.start_turn("Segment the two things.")
    opened = [len(turn.open_prefixes) for _ in ask_server(FakeClient(), conversation, turn)]
    assert max(opened) == TOKENS - 1 and turn.is_finished and not turn.open_prefixes
    assert [sorted(mask.prefixes) for mask in turn.masks] == [[1, 2, 3]] * 2
    assert [found.name for _, found in turn.match_masks()] == ["thing 1", "thing 2"]


def test_every_prefix_is_asked_for_at_the_size_of_a_screen(conversation):
    client = FakeClient()
    list(ask_server(client, conversation, conversation.start_turn("Segment it.")))
    assert client.asked[0]["previews"] == "all" and client.asked[0]["preview_side"] == 1280
    assert client.asked[0]["images"] == [conversation.image.content]


def test_an_error_of_the_server_is_a_sentence_in_the_turn(conversation):
    turn = conversation.start_turn("fail")
    list(ask_server(FakeClient(), conversation, turn))
    assert turn.is_finished and turn.error.startswith("request: got one that the model cannot answer")


def test_a_server_that_does_not_answer_yet_is_a_sentence_in_the_turn(conversation):
    class LoadingClient:
        def ask(self, *arguments, **options):
            raise ServerUnreachableError("http://127.0.0.1:1/v1: no server answers")

    turn = conversation.start_turn("Segment it.")
    list(ask_server(LoadingClient(), conversation, turn))
    assert "still loading" in turn.error and turn.is_finished


def test_an_answer_that_is_left_counts_as_stopped(conversation):
    turn = conversation.start_turn("Segment it.")
    updates = ask_server(FakeClient(), conversation, turn)
    next(updates)
    updates.close()
    assert turn.is_stopped and turn.is_finished


NO_TARGET = "There is no dog in the image."


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Segment the dog.", "I see nothing of that kind.", True),
        ("Where is the dog? Answer with a segmentation mask.", "Nowhere.", True),
        ("the dog", NO_TARGET, True),
        ("What colour is it?", "It is yellow.", False),
        ("Is she wearing a mask?", "Yes.", False),
        ("Describe the image.", "A street. There is no dog in the image.", False),
    ],
)
def test_only_a_request_for_masks_has_no_target(conversation, question, answer, expected):
    turn = conversation.start_turn(question)
    turn.answer, turn.is_finished = answer, True
    assert turn.has_no_target is expected


def test_every_question_of_the_package_with_a_no_target_answer_asks_for_masks(conversation):
    prompts = Prompts.load()
    for task in ("segment", "segment_sentence", "segment_class", "segment_instances", "open_vocabulary", "box_to_mask"):
        for question in prompts.texts(task, "questions"):
            assert asks_for_masks(question, ""), question
    for text in prompts.texts_of_kind("none"):
        assert asks_for_masks("x", re.sub(r"\{\w+\}", "small red dog", text)), text
    for task in ("choose", "answer_shortly", "answer_yes_no", "describe"):
        assert not any(asks_for_masks(question, "Yes.") for question in prompts.texts(task, "questions")), task


def test_an_answer_about_a_region_needs_no_mask(conversation):
    turn = conversation.start_turn("Segment what is in <mask>.", [BOX])
    turn.answer, turn.is_finished = NO_TARGET, True
    assert not turn.has_no_target


def test_a_second_image_has_its_own_conversation(tmp_path, conversation):
    session = Session()
    first = session.add_image(conversation.image)
    answer(first)
    second = session.add_image(conversation_of(tmp_path, name="b.png").image)
    assert session.current is second and not second.turns and session.names() == ["1. a photo.png", "2. b.png"]
    session.show(0)
    assert session.current is first
    session.clear_current()
    assert not session.current.turns and session.current.image is first.image
