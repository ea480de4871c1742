"""examples/09_real_base: the photographs and the rows about them."""

import random
import re
from collections import Counter

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tiny_parts import CATEGORIES, coco_folder, square_photograph


def test_changed_photographs_keep_masks_on_their_objects(modules):
    _, photographs, _ = modules
    rng = np.random.default_rng(0)
    photograph = square_photograph(photographs, 1, (10, 40, 15, 55))
    cutouts = photographs.Cutouts()
    cutouts.add(square_photograph(photographs, 2, (0, 50, 0, 60), 5, (0, 255, 0)))
    pasted_objects = 0
    for _ in range(20):
        changed = photographs.paste(photographs.crop(photographs.mirror(photograph), rng), cutouts, rng)
        pixels = np.asarray(changed.image).astype(int)
        colors = {1: (pixels[..., 0] > 190) & (pixels[..., 1] < 60), 5: (pixels[..., 1] > 190) & (pixels[..., 0] < 60)}
        for region in changed.regions:
            shown = colors[region.category_id]
            assert (region.mask & ~shown).sum() == 0
            pasted_objects += region.category_id == 5
        assert not changed.is_whole and changed.image.size == changed.regions[0].mask.shape[::-1]
    assert pasted_objects > 5


def test_the_split_depends_on_the_id_alone(modules):
    _, photographs, _ = modules
    held_out = [id for id in range(2000) if photographs.is_held_out(id)]
    assert 150 < len(held_out) < 250 and photographs.is_held_out(9) == photographs.is_held_out(9)


def test_rows_of_a_photograph_are_joined_to_a_conversation(modules, tmp_path):
    _, photographs, questions = modules
    source = coco_folder(photographs, tmp_path / "coco")
    variants = photographs.make_variants(source, [1, 2, 3], 2, 0)
    photographs.write_photographs(tmp_path / "train", variants, source.categories)
    rows = questions.prepare(tmp_path / "train", tmp_path / "rows.jsonl", ("segment_class", "segment_instances"), 0)
    absent = questions.prepare_negatives(tmp_path / "train", tmp_path / "absent.jsonl", 0)
    assert absent and all(row["masks"] == [] for row in absent)
    words = questions.Words(tmp_path / "train", {"1": ["A dog on the left.", "A dog."]}, 0)
    joined = list(questions.mask_conversations(words, questions.turns_by_image(rows + absent), random.Random(0)))
    assert len(joined) == 6  # three photographs, each also mirrored
    for row in joined:
        texts = [message["content"] for message in row["messages"]]
        assert texts[0].startswith("<image>") and "<image>" not in "".join(texts[1:])
        assert sum(text.count("<mask>") for text in texts) == len(row["masks"]) > 0
        assert texts[-2] == questions.LIST_QUESTION and texts[-1] in ("dog.", "orange.")
        for before in "".join(texts).split("<mask>")[:-1]:
            assert re.search(r"rows \d-\d, columns \d-\d $", before)
    talk = [words.conversation(path)["messages"] for path in words.images]
    texts = [message["content"] for messages in talk for message in messages]
    assert "A dog." in texts and "A dog on the left." not in texts and "Is there an orange?" in "".join(texts)
    assert {f"The dog: rows 0-2, columns {columns}." for columns in ("0-3", "6-9")} < set(texts)  # the second mirrored


def test_a_question_has_a_target_twice_as_often_as_none(modules):
    questions = modules[2]

    def ask(name: str, number: int) -> list[dict]:
        return [{"messages": [{"role": "user", "content": name}], "images": [f"{i}.jpg"]} for i in range(number)]

    absent = ask("dog", 9) + ask("cat", 1) + ask("cow", 5) + ask("bus", 2)
    kept = questions.limit_absent(absent, ask("dog", 9) + ask("cat", 20) + ask("cow", 1), random.Random(0))
    assert Counter(row["messages"][0]["content"] for row in kept) == {"dog": 4, "cat": 1}
    images = [row["images"][0] for row in kept]
    assert images != sorted(images)  # not the first ones of each


def test_descriptions_are_read_as_text_before_photographs(modules, tmp_path):
    _, photographs, questions = modules
    coco_folder(photographs, tmp_path)
    words = questions.Words(tmp_path, {"1": ["A dog."]}, 0)
    path = next(iter(words.images))
    row = words.read(words.questions(path), grid=5)
    assert set(row) == {"messages", "masks"} and row["masks"] == []  # no image
    first, *others = [message["content"] for message in row["messages"]]
    description, question = first.split("\n")
    assert description == " dog0203" * 2 + " nothing" * 15 and question.startswith("Is there ")
    assert "The dog: rows 0-2, columns 0-3." in others and others[-1] == "dog." and "A dog." not in others
    asked = questions.join_turns(path, [("Segment the dog.", "The dog: <mask>.", [words])])
    row = words.read(asked, grid=5)
    assert row["messages"][0]["content"] == f"{description}\nSegment the dog." and row["masks"] == [words]
    assert row["messages"][1:] == asked["messages"][1:] and asked["messages"][0]["content"].startswith("<image>")


def test_mask_tokens_are_learned_from_answers_without_a_photograph(modules):
    questions = modules[2]
    turns = [(f"Segment the {i}.", f"The {i}: <mask>.", [i]) for i in range(13)]
    rows = [questions.join_turns("a.jpg", [turn, (questions.LIST_QUESTION, "dog.", [])]) for turn in turns]
    listed = list(questions.list_masks(rows, random.Random(0)))
    assert [len(row["masks"]) for row in listed] == [12, 1] and all(set(row) == {"messages", "masks"} for row in listed)
    assert sorted(mask for row in listed for mask in row["masks"]) == list(range(13))
    for row in listed:
        question, answer = (message["content"] for message in row["messages"])
        assert question == questions.LIST_MASKS_QUESTION
        assert answer == " ".join(f"The {mask}: <mask>." for mask in row["masks"])


def test_places_are_named_before_each_mask(modules):
    questions, masks = modules[2], np.zeros((3, 60, 80), np.uint8)
    masks[0, 0, 0] = masks[1, 59, 79] = masks[2, 6:12, 8:17] = 1
    first, last, other = (coco_mask.encode(np.asfortranarray(mask)) for mask in masks)
    assert questions.name_place([first]) == "rows 0-0, columns 0-0"
    assert questions.name_place([last]) == "rows 9-9, columns 9-9"
    assert questions.name_place([first, other]) == "rows 0-1, columns 0-2"
    text = questions.add_places("a: <mask>, b: <mask>.", [other, last])
    assert text == "a: rows 1-1, columns 1-2 <mask>, b: rows 9-9, columns 9-9 <mask>."
    assert questions.add_places("There is no dog.", []) == "There is no dog."
    assert questions.add_name("<mask>, <mask>.", "Segment each hot dog.") == "The hot dog: <mask>, <mask>."
    for answer, question in (("There is no dog.", "Segment the dog."), ("dog: <mask>", "Segment all objects.")):
        assert questions.add_name(answer, question) == answer


def test_the_largest_object_of_a_class_is_asked_for(modules, tmp_path):
    _, photographs, questions = modules
    image, masks = Image.new("RGB", (80, 60)), np.zeros((4, 60, 80), bool)
    masks[0, :10, :10] = masks[1, :30, 40:] = masks[2, 40:, :] = masks[3, :2, :2] = True
    regions = [photographs.Region(mask, category, 0) for mask, category in zip(masks, (1, 1, 5, 1), strict=True)]
    photograph = photographs.Photograph(1, image, tuple(regions))
    other = photographs.Photograph(2, image, (regions[2], photographs.Region(masks[1], 1, 1)))  # a crowd of dogs
    tiny = photographs.Photograph(3, image, (regions[3],))  # 4 of 4800 pixels
    photographs.write_photographs(tmp_path, [photograph, other, tiny], CATEGORIES)
    (row,) = questions.ask_for_largest(tmp_path, "dog")
    assert row["images"] == [str(tmp_path / "images" / "000001_1.jpg")]
    assert row["messages"][0]["content"] == "<image>Segment the largest dog."
    assert np.array_equal(coco_mask.decode(row["masks"][0]).astype(bool), masks[1])
