"""Every task makes rows to learn from: placeholders fit masks and boxes, words say what the mask shows."""

import random

import numpy as np
import pytest
import yaml
from on_disk import blob, decoded

from himtok_plugin.data.prompts import DEFAULT_FILE, Prompts
from himtok_plugin.data.records import BadEntry, Dialogue, Grounded, Query, Record, Region, SkipLog
from himtok_plugin.data.tasks import TASKS, Maker, Phrase, TaskOptions
from himtok_plugin.evaluation.protocols import PROTOCOLS, find_protocol
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks.sources import mask_bbox

SIZE = (48, 64)
DOG, CUP, CUP2 = (blob(seed=seed) for seed in (1, 2, 3))


def record(**changes):
    fields = {
        "image": "a.jpg",
        "size": SIZE,
        "image_id": "7",
        "regions": (Region(DOG, "dog", id="r0"), Region(CUP, "cup", id="r1"), Region(CUP2, "cup", id="r2")),
        "queries": (Query(("left dog", "brown dog"), (0,), id="q0"), Query(("cups",), (1, 2), id="q1")),
        "present": frozenset(("dog", "cup")),
    }
    return Record(**{**fields, **changes})


NEGATIVES = (
    Phrase("red car", "car", "8", False),
    Phrase("car", "car", "8", True),
    Phrase("a dog there", "dog", "9", False),
)


def rows(task, of=None, seed=0, log=None, share=1.0, **options):
    make = Maker(
        Prompts.load(), random.Random(seed), log or SkipLog(strict=True), TaskOptions(**options), NEGATIVES, "d", "s",
        task, share,
    )  # fmt: skip
    return list(TASKS[task].function(of or record(), make))


@pytest.mark.parametrize("task", TASKS)
def test_placeholders_fit_what_a_row_holds(task):
    made = [row for seed in range(30) for row in rows(task, seed=seed)]
    if task == "converse":
        return  # tested below: needs texts
    assert made
    for row in made:
        text = "".join(message["content"] for message in row.get("messages", ()))
        if task == "masks":
            assert set(row) == {"masks", "source"} and len(row["masks"]) == 1
            continue
        assert text.count("<mask>") == len(row["masks"])
        assert text.count("<bbox>") == len(row.get("objects", {}).get("bbox", ()))
        assert text.startswith("<image>") and text.count("<image>") == 1 and "{" not in text
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert row["source"]["task"] == task and row["images"] == ["a.jpg"]


def test_masks_and_boxes_are_those_of_their_region():
    for row, mask in zip(rows("box_to_mask"), (DOG, CUP, CUP2), strict=True):
        np.testing.assert_array_equal(decoded(row["masks"][0]), mask)
        assert row["objects"]["bbox"] == [list(map(float, mask_bbox(mask)))]
    question, answer = (message["content"] for message in rows("mask_to_box")[0]["messages"])
    assert "<mask>" in question and "<bbox>" in answer


def test_mask_then_box_answers_both_in_this_order():
    made = rows("mask_then_box")
    assert [row["source"]["id"] for row in made] == ["q0", "q0"]  # several targets have no single box
    answer = made[0]["messages"][1]["content"]
    assert answer.index("<mask>") < answer.index("<bbox>")
    of_classes = rows("mask_then_box", record(queries=()))
    assert [row["source"]["id"] for row in of_classes] == ["dog"]  # there are two cups


def test_classes_are_unions_instances_single_and_lines_are_labelled():
    by_class = {row["source"]["id"]: row for row in rows("segment_class")}
    np.testing.assert_array_equal(decoded(by_class["cup"]["masks"][0]), CUP | CUP2)
    assert by_class["cup"]["category"] == "cup"
    single = {row["source"]["id"]: row for row in rows("segment_instances")}
    assert len(single["cup"]["masks"]) == 2
    lines = rows("label_objects")[0]["messages"][1]["content"].splitlines()
    assert sorted(lines) == ["cup: <mask>", "cup: <mask>", "dog: <mask>"]
    areas = [decoded(mask).sum() for mask in rows("label_objects")[0]["masks"]]
    assert areas == sorted(areas, reverse=True)


def test_open_vocabulary_names_absent_classes_and_answers_with_those_that_are_there():
    row = rows("open_vocabulary")[0]
    question, answer = (message["content"] for message in row["messages"])
    assert all(name in question for name in ("car", "dog", "cup")) and "car" not in answer
    for line, mask in zip(answer.splitlines(), row["masks"], strict=True):
        expected = DOG if line.startswith("dog") else CUP | CUP2
        np.testing.assert_array_equal(decoded(mask), expected)


def test_negatives_never_name_a_class_of_the_image():
    for seed in range(50):
        for row in rows("negative", seed=seed):
            assert "dog" not in row["messages"][0]["content"] and "car" in row["messages"][0]["content"]
            assert row["masks"] == []
    log = SkipLog()
    assert rows("negative", record(present=frozenset(("dog", "cup", "car"))), log=log) == []
    assert log.counts == {"no expression of another image fits": 2}


def test_descriptions_are_the_expressions():
    made = rows("describe")
    assert [row["messages"][1]["content"] for row in made] == ["left dog", "brown dog"]
    assert all("<mask>" in row["messages"][0]["content"] for row in made)
    assert [row["messages"][1]["content"] for row in rows("name_region")] == ["dog", "cup", "cup"]


def test_scoring_columns_say_referent_and_expressions():
    row = rows("segment")[1]
    assert row["referent"] == "q0" and row["expressions"] == ["left dog", "brown dog"]


@pytest.mark.parametrize("expression", ["a zebra", "The zebra", "an zebra", "zebra"])
def test_no_target_is_answered_by_words(expression):
    of = record(queries=(Query((expression,), (), id="q"),))
    for task in ("segment", "ground"):
        (row,) = rows(task, of)
        assert row["messages"][1]["content"].startswith("There is no zebra") and not row["masks"]
        assert expression in row["messages"][0]["content"]


def test_rows_say_whether_they_ask_for_masks():
    """Whether an answer without one would say that there is nothing."""
    tasks = TASKS.keys() - {"masks", "converse"}
    asking = {task: {row["asks_for_masks"] for row in rows(task)} for task in tasks}
    silent = {"describe", "ground", "mask_to_box", "name_region"}
    assert asking == {task: {task not in silent} for task in asking} and silent < set(asking)
    of = record(
        grounded=(
            Grounded(("Nothing of note.",), id="g0"),
            Grounded(("Two.",), question="How many?", id="g1"),
            Grounded((("A dog", (0,)),), question="What is it?", id="g2"),
        ),
        dialogues=(
            Dialogue("Is there a dog?", "Yes"),
            Dialogue("What is <mask>?", "A dog.", masks=(0,)),
            Dialogue("What is beside <mask>?", "<mask>", masks=(0, 1)),
        ),
    )
    assert [row["asks_for_masks"] for row in rows("converse", of)] == [True, False, True, False, False, True]


def test_expressions_are_asked_each_one_of_them_the_first_or_all_joined():
    def asked(sentences):
        return [row["messages"][0]["content"].removeprefix("<image>") for row in rows("segment", sentences=sentences)]

    assert len(asked("each")) == 3 and len(asked("one")) == 2
    first = asked("first")
    assert "left dog" in first[0] and "cups" in first[1] and len(first) == 2
    assert asked("joined") == [
        "Segment <ref>Meet all the descriptions: 1. left dog. 2. brown dog. </ref>.",
        "Segment <ref>Meet all the descriptions: 1. cups. </ref>.",
    ]
    for row in rows("segment", sentences="joined"):
        find_protocol("all-sentences").check_question(row["messages"][0]["content"], row["expressions"])
    for name in PROTOCOLS.keys() - {"all-sentences"}:
        for row in rows("segment", sentences="first"):
            find_protocol(name).check_question(row["messages"][0]["content"], row["expressions"])
    (row,) = rows("segment", record(queries=(Query(("a zebra", "it"), ()),)), sentences="joined")
    assert row["messages"][1]["content"].startswith("There is no")


def test_classes_that_may_not_be_annotated_whole_are_not_asked_for():
    of = record(queries=(), incomplete_classes=frozenset(("cup",)))
    for task in ("segment_class", "segment_instances"):
        assert [row["source"]["id"] for row in rows(task, of)] == ["dog"]
    for seed in range(20):
        (row,) = rows("open_vocabulary", of, seed=seed)
        assert "cup" not in str(row["messages"]) and row["messages"][1]["content"] == "dog: <mask>"
    for incomplete in ("cup", "hat"):  # of the latter there is no mask to list
        assert rows("label_objects", record(queries=(), incomplete_classes=frozenset((incomplete,)))) == []
    alone = record(queries=(), regions=(Region(DOG, "dog"),), incomplete_classes=frozenset(("dog",)))
    assert rows("mask_then_box", alone) == [] and len(rows("box_to_mask", alone)) == 1
    log = SkipLog()
    assert rows("negative", record(incomplete_classes=frozenset(("car",))), log=log) == []  # there may be one
    assert log.counts == {"no expression of another image fits": 2}


def test_objects_beside_a_crowd_are_not_said_to_be_all():
    crowd = Region(CUP2, "cup", crowd=True, id="r2")
    of = record(queries=(), regions=(Region(DOG, "dog", id="r0"), Region(CUP, "cup", id="r1"), crowd))
    assert rows("label_objects", of, log=SkipLog()) == []
    for task in ("segment_instances", "mask_then_box"):
        assert [row["source"]["id"] for row in rows(task, of, log=SkipLog())] == ["dog"]


def test_grounded_texts_and_dialogues():
    of = record(
        grounded=(Grounded((("A dog", (0,)), " beside ", ("two cups", (1, 2)), "."), id="g"),),
        dialogues=(
            Dialogue("What is <mask>?", "A dog.", masks=(0,), id="d"),
            Dialogue("Which?", "B", ("a cat", "a dog"), id="c"),
        ),
    )
    text, question, choice = rows("converse", of)
    answer = text["messages"][1]["content"]
    assert answer == "<ref>A dog</ref><mask> beside <ref>two cups</ref><mask><mask>."
    np.testing.assert_array_equal(decoded(text["masks"][2]), CUP2)
    assert question["messages"][0]["content"] == "<image>What is <mask>?"
    assert "A. a cat\nB. a dog" in choice["messages"][0]["content"] and choice["messages"][1]["content"] == "B"
    merged = rows("converse", of, merge_targets=True)[0]
    np.testing.assert_array_equal(decoded(merged["masks"][1]), CUP | CUP2)
    log = SkipLog()
    rows("converse", record(dialogues=(Dialogue("<mask> <image>", "x", masks=(0, 1)),)), log=log)
    rows("converse", record(dialogues=(Dialogue("<mask> <image>", "x", masks=(0,)),)), log=log)
    assert log.counts == {
        "masks do not fit the placeholders of the text": 1,
        "text is empty or holds a placeholder": 1,
    }


def test_dialogues_may_hold_masks_written_out():
    written = codes_to_text([1, 2])
    (row,) = rows("converse", record(dialogues=(Dialogue(f"What is {written}?", "A dog."),)))
    assert row["messages"][0]["content"] == f"<image>What is {written}?" and row["masks"] == []
    reference = codes_to_text([0] * 32)  # which becomes `<mask>` wherever rows are read
    (row,) = rows("converse", record(dialogues=(Dialogue(f"What is {reference}?", "A dog.", masks=(0,)),)))
    assert row["messages"][0]["content"] == "<image>What is <mask>?" and len(row["masks"]) == 1
    log = SkipLog()
    for text in ("<|mt_start|><|mt_1|>", "<|mt_3|>", "<|mt_start|><|mt_end|>", f"{written}<|mt_x|>"):
        assert rows("converse", record(dialogues=(Dialogue(text, "A dog."),)), log=log) == []
    assert rows("segment", record(queries=(Query((written,), (0,)),)), log=log) == []
    assert log.counts == {"text is empty or holds a placeholder": 5}
    rows("converse", record(dialogues=(Dialogue("Which?", "A", ("<mask>", "a cat")),)), log=log)
    assert log.counts["masks do not fit the placeholders of the text"] == 1


def test_a_bad_mask_is_told_once_however_many_tasks_ask_for_it():
    log = SkipLog()
    of = record(regions=(Region({"size": [48, 64], "counts": "?"}, "dog"), Region(CUP, "cup")), queries=())
    for task in ("box_to_mask", "mask_to_box", "segment_class", "name_region"):
        assert len(rows(task, of, log=log)) == 1
    assert log.counts == {"mask cannot be read": 1}


def test_labels_that_would_break_their_line_are_refused():
    log = SkipLog()
    assert rows("label_objects", record(regions=(Region(DOG, "dog: brown"),)), log=log) == []
    assert log.counts == {"text is empty or holds a placeholder": 1}


def test_a_share_is_that_of_the_rows():
    made = sum(len(rows("box_to_mask", seed=seed, share=0.3)) for seed in range(200))
    assert 130 < made < 230  # of 600


def test_the_same_seed_draws_the_same_words_and_others_others():
    assert rows("segment", seed=3) == rows("segment", seed=3)
    assert len({row["messages"][0]["content"] for seed in range(40) for row in rows("segment", seed=seed)}) > 6


def test_weights_decide_how_often_a_text_is_drawn(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text('describe: {questions: [{text: "A <mask>", weight: 9}, "B <mask>"], answers: ["{expression}!"]}')
    prompts, rng = Prompts.load(path), random.Random(0)
    drawn = [prompts.draw("describe", "questions", rng) for _ in range(500)]
    assert 0.85 < drawn.count("A <mask>") / 500 < 0.95
    assert prompts.draw("describe", "answers", rng, expression="{x} a\\1") == "{x} a\\1!"
    assert prompts.draw("mask_to_box", "answers", rng)  # the other pools stay


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


def test_every_shipped_pool_has_several_phrasings_with_the_same_fields(tmp_path):
    pools = yaml.safe_load(DEFAULT_FILE.read_text())
    assert all(len(pools[task]["questions"]) >= 2 for task in pools)
    Prompts.load(DEFAULT_FILE)  # checks every text's fields against the first one's


def test_bad_boxes_are_refused():
    for box in ((5, 5, 5, 9), (0, 0, float("nan"), 5), (100, 0, 200, 5), "abcd", (1, 2, 3)):
        with pytest.raises(BadEntry, match="box is not"):
            record(regions=(Region(DOG, box=box),)).box(0)
    assert record(regions=(Region(DOG, box=(-5, 0, 99, 9.5)),)).box(0) == (0, 0, 64, 9.5)
