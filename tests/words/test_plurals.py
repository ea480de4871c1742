"""Plural forms of class names of COCO, LVIS and ADE20K."""

import pytest

from himtok_plugin.words.plurals import other_numbers, pluralize

PLURALS = {
    "bowl": "bowls",
    "person": "people",
    "sheep": "sheep",
    "traffic light": "traffic lights",
    "dining table": "dining tables",
    "wine glass": "wine glasses",
    "bus": "buses",
    "bench": "benches",
    "couch": "couches",
    "knife": "knives",
    "mouse": "mice",
    "broccoli": "broccoli",
    "toothbrush": "toothbrushes",
    "teddy bear": "teddy bears",
    "tie": "ties",
    "bookshelf": "bookshelves",
    "snowman": "snowmen",
    "ottoman": "ottomans",
    "butterfly": "butterflies",
    "toy": "toys",
    "giraffe": "giraffes",
    "camera lens": "camera lenses",
    "hippopotamus": "hippopotamuses",
    "potato": "potatoes",
    "piano": "pianos",
    "bat (animal)": "bats (animal)",
    "chest of drawers": "chests of drawers",
    "bow-tie": "bow-ties",
    "sofa, couch": "sofas, couches",
    "Person": "People",
    "BOTTLE": "BOTTLES",
    "TV": "TVs",
}
UNCHANGED = (
    *("people", "scissors", "skis", "stairs", "sunglasses", "teeth", "cats", "women"),  # plural already
    *("rice", "apparel", "grass-merged", "sky-other", "wall-brick"),  # not counted
    *("Straße", "голубь", "碗", "class_3", "defect 2", ""),  # no English words
)


@pytest.mark.parametrize(("name", "plural"), PLURALS.items())
def test_the_head_of_a_class_name_is_put_into_the_plural(name, plural):
    assert pluralize(name) == plural


@pytest.mark.parametrize("name", UNCHANGED)
def test_plurals_what_is_not_counted_and_other_languages_stay(name):
    assert pluralize(name) == name


@pytest.mark.parametrize("name", PLURALS)
def test_a_plural_is_not_put_into_the_plural_again(name):
    assert pluralize(pluralize(name)) == pluralize(name)


def test_words_have_their_other_number():
    assert "bus" in other_numbers("buses")
    assert "buses" in other_numbers("bus")
    assert other_numbers("people") == {"person"}
    assert other_numbers("circles") == {"circle"}
    assert not {"glas", "glass"} & other_numbers("glass")
