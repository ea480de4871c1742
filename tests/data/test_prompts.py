"""Pools of prompts: weights, fields, and YAML files with faults."""

import random

import pytest
import yaml

from himtok_plugin.data.prompts import DEFAULT_FILE, Prompts


def test_weights_decide_how_often_a_text_is_drawn(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('describe: {questions: [{text: "A <mask>", weight: 9}, "B <mask>"], answers: ["{expression}!"]}')
    prompts, rng = Prompts.load(path), random.Random(0)
    drawn = [prompts.draw("describe", "questions", rng) for _ in range(500)]
    assert 0.85 < drawn.count("A <mask>") / 500 < 0.95
    assert prompts.draw("describe", "answers", rng, expression="{x} a\\1") == "{x} a\\1!"
    assert prompts.draw("mask_to_box", "answers", rng)  # other pools are unchanged


def test_pools_can_name_a_class_in_the_plural_or_not(tmp_path):
    rng = random.Random(0)
    drawn = {Prompts.load().draw("segment_class", "questions", rng, category="dining table") for _ in range(50)}
    assert drawn == {
        "Segment all dining tables.",
        "Segment everything of the class dining table in this image.",
        "Output one mask of all dining tables.",
        "Which pixels show dining tables? Answer with one mask.",
    }
    path = tmp_path / "mine.yaml"
    path.write_text('segment_class: {questions: ["Segmentiere {category}."]}')
    assert Prompts.load(path).draw("segment_class", "questions", rng, category="Hund") == "Segmentiere Hund."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("segment: {question: [a]}", "got the pool segment.question, expected one of segment.questions"),
        ('segment: {questions: ["Segment it."]}', "holds [], expected ['expression']"),
        ('segment: {one: ["There."]}', "expected ['<mask>']"),
        ("segment: {one: []}", "expected a list of texts"),
        ("segment: {one: [{text: <mask>, weight: 0}]}", "weight: got 0"),
        ("segment: {one: [5]}", "got 5, expected a text"),
        ("[a", "is not YAML"),
        ("a", "expected tasks"),
    ],
)
def test_bad_pools_are_refused(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=".*") as error:
        Prompts.load(path)
    assert message in str(error.value)


def test_every_shipped_pool_has_several_texts_with_the_same_fields(tmp_path):
    pools = yaml.safe_load(DEFAULT_FILE.read_text())
    assert all(len(pools[task]["questions"]) >= 2 for task in pools)
    Prompts.load(DEFAULT_FILE)  # checks every text's fields against the first one's
