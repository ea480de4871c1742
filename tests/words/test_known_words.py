"""Words of training questions, and what a question has beyond them."""

import json

import pytest

from himtok_plugin.checkpoints.model_folder import check_model_folder
from himtok_plugin.data.generated.expressions import DIRECTIONS
from himtok_plugin.data.generated.scenes import generate_scenes
from himtok_plugin.data.generated.shapes import COLOURS, SHAPE_KINDS, SHAPE_SIZES
from himtok_plugin.resources import default_checkpoint
from himtok_plugin.words.known_words import KnownWords, describe_unknown_words, find_question

KNOWN = KnownWords.of_texts(["<image>Segment the small red circles.", "Is the man left of 2 cups?", "红色圆形"])


@pytest.mark.parametrize(
    ("question", "unknown"),
    [
        ("<image>SEGMENT: the red, small circle!", []),
        ("Segment the bus.", ["bus"]),
        ("Segment the Bus; the bus, buses and the star.", ["Bus", "buses", "and", "star"]),
        ("the men left of the man's cup", []),
        ("dark-red", ["dark-red"]),
        ("red-circle", []),
        ("3 cups, 1.5 circles", []),
        ("<mask><bbox><|mt_start|><|mt_7|><|mt_end|> ?! 🚌", []),
        ("红的圆好人形坏", ["的", "好人", "坏"]),  # neighbours are shown together
        ("कुत्ता बिल्ली", ["कुत्ता", "बिल्ली"]),  # vowel signs belong to their word
        ("", []),
    ],
)
def test_a_question_has_unknown_words(question, unknown):
    assert KNOWN.find_unknown(question) == unknown


def test_numbers_are_unknown_where_training_had_none():
    assert KnownWords.of_texts(["two cups"]).find_unknown("3 cups") == ["3"]


def test_the_question_is_what_the_user_said_after_the_last_answer():
    user, answer = {"role": "user", "content": "the bus"}, {"role": "assistant", "content": "It is <mask>."}
    parts = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the star"}]}
    assert find_question([{"role": "system", "content": "Be brief."}, user]) == "the bus"
    assert find_question([user, answer, parts]) == "the star"
    assert find_question([user, answer, parts, answer]) == "the star"
    assert find_question([]) == ""


def test_a_list_is_saved_beside_the_weights_and_loaded(tmp_path):
    assert KnownWords.load(tmp_path) is None
    KNOWN.save(tmp_path)
    check_model_folder(tmp_path)
    assert KnownWords.load(tmp_path) == KNOWN


@pytest.mark.parametrize("content", ["", '["a"', '{"a": 1}', "[1]", "version https://git-lfs.github.com/spec/v1"])
def test_a_damaged_list_is_named(tmp_path, content):
    (tmp_path / "known_words.json").write_text(content)
    with pytest.raises(ValueError, match=r"known_words\.json: .*expected"):
        KnownWords.load(tmp_path)


def test_a_sentence_names_the_words():
    assert describe_unknown_words([]) == ""
    assert '"bus", "Haus"' in describe_unknown_words(["bus", "Haus"])


def test_the_shipped_list_has_the_words_of_the_generated_scenes_and_no_others():
    shipped = KnownWords.load(default_checkpoint())
    for text in (*COLOURS, *SHAPE_KINDS, *SHAPE_SIZES, *DIRECTIONS, "Segment all shapes.", "Segment the two stars."):
        assert shipped.find_unknown(text) == []
    assert shipped.find_unknown("Segment the bus.") == ["bus"]
    scenes = generate_scenes(300, 7, turns=5, questions=6, max_shapes=5)
    texts = [turn["content"] for scene in scenes for turn in scene.messages if turn["role"] == "user"]
    assert KnownWords.of_texts(texts) == shipped
    assert json.loads((default_checkpoint() / "known_words.json").read_text()) == sorted(shipped.words)
