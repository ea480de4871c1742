"""Answers of a result file, given to other images."""

from collections import Counter

import numpy as np
import pytest
from tiny_results import column_mask, predicted_mask, wide_mask, write_results

from himtok_plugin.evaluation.shuffled_answers import ShuffledAnswers, draw_donors, transfer_masks
from himtok_plugin.masks import load_mask, to_rle


def result(question, image, *columns, **further):
    texts = [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": "x"}]
    masks = [predicted_mask(*columns)] if columns else []
    return {
        "messages": texts,
        "images": [{"bytes": None, "path": image}],
        "masks": masks,
        "target_masks": [],
        **further,
    }


@pytest.mark.parametrize("seed", range(5))
def test_everyone_gets_the_answer_to_its_phrase_about_another_image_and_each_is_used_once(seed):
    rng = np.random.default_rng(seed)
    phrases = rng.integers(0, 40, 2000)
    images = rng.integers(0, 1000, 2000)
    donors, same = draw_donors(phrases, images, np.random.default_rng(seed))
    assert same.all()
    assert (phrases[donors] == phrases).all() and (images[donors] != images).all()
    assert max(Counter(donors.tolist()).values()) == 1
    again, _ = draw_donors(phrases, images, np.random.default_rng(seed))
    other, _ = draw_donors(phrases, images, np.random.default_rng(seed + 1))
    assert (again == donors).all() and (other != donors).mean() > 0.9


def test_phrases_without_another_image_get_answers_to_others():
    phrases = np.array([0, 1, 1, 2, 2, 2])  # 0 and 1 on one image each, 2 on image 0 twice and on image 3 once
    images = np.array([0, 1, 1, 0, 0, 3])
    donors, same = draw_donors(phrases, images, np.random.default_rng(0))
    assert same.tolist() == [False] * 3 + [True] * 3 and donors[3:5].tolist() == [5, 5]
    assert (images[donors] != images).all() and (phrases[donors] == phrases).tolist() == same.tolist()
    # All other images are drawn from, also where a single result is of another one.
    drawn = {int(draw_donors(phrases, images, np.random.default_rng(seed))[0][0]) for seed in range(100)}
    assert drawn == {1, 2, 5}
    assert draw_donors(np.arange(2), np.arange(2), np.random.default_rng(0))[0].tolist() == [1, 0]


def test_only_answers_with_a_truth_are_exchanged(tmp_path):
    path = write_results(
        tmp_path / "out.jsonl",
        result("Segment the road.", "a.png", 0),
        "",
        result("Segment the road.", "b.png", error="no image"),
        result("Segment the car.", "b.png", 1, target_masks=None),
        result("segment the  road", "c.png", 2),
        result("Segment the road.", "d.png", 3),
    )
    answers = ShuffledAnswers(path, left_out={6})
    assert answers.phrases == {"the road"}
    assert answers.read_answer(1)[0] == 5 and answers.has_same_phrase(1)
    assert answers.read_answer(5)[1]["masks"] == [predicted_mask(0)]
    with pytest.raises(ValueError, match="line: got 3, expected one of .*out.jsonl with an answer"):
        answers.read_answer(3)


def test_files_whose_answers_cannot_be_exchanged_are_refused(tmp_path):
    row = result("Segment the road.", "a.png", 0)
    expected = "--baseline: got answers about 1 images with true masks in .*out.jsonl, expected at least 2"
    with pytest.raises(ValueError, match=expected):
        ShuffledAnswers(write_results(tmp_path / "out.jsonl", row, row))
    with pytest.raises(ValueError, match="got answers about 0 images"):
        ShuffledAnswers(write_results(tmp_path / "out.jsonl", {**row, "target_masks": None}))
    with pytest.raises(ValueError, match="out.jsonl: row 2: has no 'masks'"):
        ShuffledAnswers(write_results(tmp_path / "out.jsonl", row, {"messages": []}))


def test_masks_keep_their_place_in_images_of_another_size():
    row = {"masks": [{**to_rle(wide_mask(0, 2)), "score": 0.5}]}
    assert transfer_masks(row, (64, 64)) == row["masks"]
    (moved,) = transfer_masks(row, (32, 128))
    assert moved["score"] == 0.5
    np.testing.assert_array_equal(load_mask(moved), np.repeat(wide_mask(0, 2)[:32], 2, axis=1))
    with pytest.raises(ValueError, match=r"masks\[0\]: "):
        transfer_masks({"masks": [{"size": [4, 4], "counts": "?"}]}, column_mask(0).shape[:1] * 2 + (1,))
