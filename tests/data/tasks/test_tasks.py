"""Samples of every task: placeholders fit masks and boxes, texts describe the masks."""

import random

import numpy as np
import pytest
from on_disk import blob, decoded

from himtok_plugin.data.prompts import Prompts
from himtok_plugin.data.records import Dialogue, GroundedText, Query, Record, Region
from himtok_plugin.data.skip_log import SkipLog
from himtok_plugin.data.tasks import TASKS, Phrase, SampleBuilder, TaskOptions
from himtok_plugin.evaluation.protocols import PROTOCOLS, find_protocol
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import mask_bbox

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
    builder = SampleBuilder(
        Prompts.load(), random.Random(seed), log or SkipLog(strict=True), TaskOptions(**options), NEGATIVES, "d", "s",
        task, share,
    )  # fmt: skip
    return list(TASKS[task].function(of or record(), builder))


@pytest.mark.parametrize("task", TASKS)
def test_placeholders_fit_the_masks_and_boxes_of_a_sample(task):
    made = [row for seed in range(30) for row in rows(task, seed=seed)]
    if task == "converse":
        return  # needs texts: tested below
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


def test_masks_and_boxes_belong_to_their_region():
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


def test_class_masks_are_unions_instances_single_masks_and_lines_labelled():
    by_class = {row["source"]["id"]: row for row in rows("segment_class")}
    np.testing.assert_array_equal(decoded(by_class["cup"]["masks"][0]), CUP | CUP2)
    assert by_class["cup"]["category"] == "cup"
    single = {row["source"]["id"]: row for row in rows("segment_instances")}
    assert len(single["cup"]["masks"]) == 2
    lines = rows("label_objects")[0]["messages"][1]["content"].splitlines()
    assert sorted(lines) == ["cup: <mask>", "cup: <mask>", "dog: <mask>"]
    areas = [decoded(mask).sum() for mask in rows("label_objects")[0]["masks"]]
    assert areas == sorted(areas, reverse=True)


def test_open_vocabulary_asks_for_absent_classes_too_and_answers_with_present_ones():
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


def test_scoring_columns_hold_referent_and_expressions():
    row = rows("segment")[1]
    assert row["referent"] == "q0" and row["expressions"] == ["left dog", "brown dog"]


@pytest.mark.parametrize("expression", ["a zebra", "The zebra", "an zebra", "zebra"])
def test_a_query_without_targets_is_answered_in_words(expression):
    of = record(queries=(Query((expression,), (), id="q"),))
    for task in ("segment", "ground"):
        (row,) = rows(task, of)
        assert row["messages"][1]["content"].startswith("There is no zebra") and not row["masks"]
        assert expression in row["messages"][0]["content"]


def test_asks_for_masks_is_false_where_an_answer_has_none_anyway():
    """If it is true, an answer without a mask means that nothing matches."""
    tasks = TASKS.keys() - {"masks", "converse"}
    asking = {task: {row["asks_for_masks"] for row in rows(task)} for task in tasks}
    silent = {"describe", "ground", "mask_to_box", "name_region"}
    assert asking == {task: {task not in silent} for task in asking} and silent < set(asking)
    of = record(
        grounded_texts=(
            GroundedText(("Nothing of note.",), id="g0"),
            GroundedText(("Two.",), question="How many?", id="g1"),
            GroundedText((("A dog", (0,)),), question="What is it?", id="g2"),
        ),
        dialogues=(
            Dialogue("Is there a dog?", "Yes"),
            Dialogue("What is <mask>?", "A dog.", masks=(0,)),
            Dialogue("What is beside <mask>?", "<mask>", masks=(0, 1)),
        ),
    )
    assert [row["asks_for_masks"] for row in rows("converse", of)] == [True, False, True, False, False, True]


def test_a_question_for_each_expression_one_of_them_the_first_or_all_joined():
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


def test_incomplete_classes_are_in_no_question_about_all_of_a_class():
    of = record(queries=(), incomplete_classes=frozenset(("cup",)))
    for task in ("segment_class", "segment_instances"):
        assert [row["source"]["id"] for row in rows(task, of)] == ["dog"]
    for seed in range(20):
        (row,) = rows("open_vocabulary", of, seed=seed)
        assert "cup" not in str(row["messages"]) and row["messages"][1]["content"] == "dog: <mask>"
    for incomplete in ("cup", "hat"):  # the latter has no mask at all
        assert rows("label_objects", record(queries=(), incomplete_classes=frozenset((incomplete,)))) == []
    alone = record(queries=(), regions=(Region(DOG, "dog"),), incomplete_classes=frozenset(("dog",)))
    assert rows("mask_then_box", alone) == [] and len(rows("box_to_mask", alone)) == 1
    log = SkipLog()
    assert rows("negative", record(incomplete_classes=frozenset(("car",))), log=log) == []  # there may be one
    assert log.counts == {"no expression of another image fits": 2}


def test_an_image_with_a_crowd_has_no_list_of_all_objects():
    crowd = Region(CUP2, "cup", crowd=True, id="r2")
    of = record(queries=(), regions=(Region(DOG, "dog", id="r0"), Region(CUP, "cup", id="r1"), crowd))
    assert rows("label_objects", of, log=SkipLog()) == []
    for task in ("segment_instances", "mask_then_box"):
        assert [row["source"]["id"] for row in rows(task, of, log=SkipLog())] == ["dog"]


def test_grounded_texts_and_dialogues():
    of = record(
        grounded_texts=(GroundedText((("A dog", (0,)), " beside ", ("two cups", (1, 2)), "."), id="g"),),
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


def test_dialogues_may_contain_mask_text():
    written = codes_to_text([1, 2])
    (row,) = rows("converse", record(dialogues=(Dialogue(f"What is {written}?", "A dog."),)))
    assert row["messages"][0]["content"] == f"<image>What is {written}?" and row["masks"] == []
    reference = codes_to_text([0] * 32)  # the placeholder of the paper's code
    (row,) = rows("converse", record(dialogues=(Dialogue(f"What is {reference}?", "A dog.", masks=(0,)),)))
    assert row["messages"][0]["content"] == "<image>What is <mask>?" and len(row["masks"]) == 1
    log = SkipLog()
    for text in ("<|mt_start|><|mt_1|>", "<|mt_3|>", "<|mt_start|><|mt_end|>", f"{written}<|mt_x|>"):
        assert rows("converse", record(dialogues=(Dialogue(text, "A dog."),)), log=log) == []
    assert rows("segment", record(queries=(Query((written,), (0,)),)), log=log) == []
    assert log.counts == {"text is empty or holds a placeholder": 5}
    rows("converse", record(dialogues=(Dialogue("Which?", "A", ("<mask>", "a cat")),)), log=log)
    assert log.counts["masks do not fit the placeholders of the text"] == 1


def test_a_bad_mask_is_logged_once_however_many_tasks_use_it():
    log = SkipLog()
    of = record(regions=(Region({"size": [48, 64], "counts": "?"}, "dog"), Region(CUP, "cup")), queries=())
    for task in ("box_to_mask", "mask_to_box", "segment_class", "name_region"):
        assert len(rows(task, of, log=log)) == 1
    assert log.counts == {"mask cannot be read": 1}


def test_labels_with_a_separator_in_them_are_refused():
    log = SkipLog()
    assert rows("label_objects", record(regions=(Region(DOG, "dog: brown"),)), log=log) == []
    assert log.counts == {"text is empty or holds a placeholder": 1}


def test_a_share_selects_that_share_of_the_samples():
    made = sum(len(rows("box_to_mask", seed=seed, share=0.3)) for seed in range(200))
    assert 130 < made < 230  # of 600


def test_the_seed_decides_the_prompts():
    assert rows("segment", seed=3) == rows("segment", seed=3)
    assert len({row["messages"][0]["content"] for seed in range(40) for row in rows("segment", seed=seed)}) > 6
