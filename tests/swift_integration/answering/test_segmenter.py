"""`Segmenter`: images and questions in, results out; the same answers as `swift infer`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import infer, read_rows

from himtok_plugin import Segmenter
from himtok_plugin.benchmarks.inference import InferenceBenchmark, measure_inference
from himtok_plugin.masks import load_mask
from himtok_plugin.prediction.calibration import Calibration


@pytest.fixture(scope="module")
def segmenter(stage_two):
    return Segmenter.from_pretrained(stage_two[1], max_new_tokens=48)


@pytest.fixture(scope="module")
def rows(world):
    return read_rows(world.scenes)


def question(row):
    return row["messages"][0]["content"].removeprefix("<image>")


def expression(row):
    return question(row).removeprefix("Segment ").removesuffix(".")


def same(one, other):
    assert one.text == other.text
    np.testing.assert_array_equal(one.masks, other.masks)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)


@pytest.fixture(scope="module")
def answers(segmenter, rows):
    return segmenter([row["images"][0] for row in rows], [expression(row) for row in rows])


def test_answers_are_those_of_swift_infer(answers, stage_two, world, tmp_path):
    written = infer(world.scenes, tmp_path / "out.jsonl", model=stage_two[1], max_batch_size=8)
    assert any(len(answer) >= 2 for answer in answers) and any(not len(answer) for answer in answers)
    for answer, row in zip(answers, written, strict=True):
        assert answer.text == row["response"] and len(answer) == len(row["masks"])
        for mask, score, entry in zip(answer.masks, answer.scores, row["masks"], strict=True):
            assert np.array_equal(mask, load_mask({key: entry[key] for key in ("size", "counts")}))
            assert score == pytest.approx(entry["score"], abs=1e-4)


def test_one_image_and_one_expression_return_one_result(segmenter, answers, rows):
    result = segmenter(rows[0]["images"][0], expression(rows[0]))
    same(result, answers[0])
    assert result.masks.shape[1:] == (64, 64) and result.boxes.shape == (len(result), 4)
    assert result.overlay().size == (64, 64)
    assert [entry["area"] for entry in result.to_coco()] == [int(mask.sum()) for mask in result.masks]


def test_expression_and_whole_question_are_the_same(segmenter, answers, rows):
    same(segmenter(rows[1]["images"][0], question(rows[1])), answers[1])
    same(segmenter(rows[1]["images"][0], "<image>" + question(rows[1])), answers[1])


def test_images_can_be_paths_pil_images_and_arrays(segmenter, answers, rows):
    path = rows[2]["images"][0]
    picture = Image.open(path)
    for image in (Path(path), picture, np.asarray(picture.convert("RGB"))):
        same(segmenter(image, expression(rows[2])), answers[2])


def test_one_image_with_several_expressions_is_a_batch(segmenter, rows, answers):
    results = segmenter(rows[0]["images"][0], [expression(rows[0]), expression(rows[1])])
    same(results[0], answers[0])
    assert len(results) == 2
    same(segmenter([row["images"][0] for row in rows[:2]], expression(rows[0]))[0], answers[0])


def test_answer_without_a_mask_has_empty_arrays(answers):
    empty = next(answer for answer in answers if "<|mt_" not in answer.text)
    assert empty.masks.shape == (0, 64, 64) and empty.to_coco() == [] and empty.text


def test_masks_in_questions_are_encoded_and_the_image_s_size_is_kept(segmenter, world):
    result = segmenter(world.image, "Segment what is beside <mask>.", masks=[world.left])
    assert result.size == (48, 64)
    assert result.messages[0]["content"] == "<image>Segment what is beside <mask>."


def test_boxes_in_questions_are_written_as_the_template_does(segmenter, world, monkeypatch):
    seen = []
    encode = type(segmenter.engine.template).encode

    def observed(template, *args, **kwargs):
        encoded = encode(template, *args, **kwargs)
        seen.append(template.safe_decode(encoded["input_ids"]))
        return encoded

    monkeypatch.setattr(type(segmenter.engine.template), "encode", observed)
    segmenter(world.image, "Segment what is in <bbox>.", boxes=[[16, 12, 32, 24]])
    assert "[[250, 250, 500, 500]]" in seen[0]


def test_history_adds_earlier_turns(segmenter, world):
    first = segmenter(world.image, "Segment what is beside <mask>.", masks=[world.left])
    second = segmenter(world.image, "the small blue square", history=first)
    assert [m["role"] for m in second.messages] == ["user", "assistant", "user", "assistant"]
    assert second.messages[1]["content"] == first.text
    assert second.messages[2]["content"] == "Segment the small blue square."
    third = segmenter(world.image, "What is <mask>?", masks=[world.right], history=second)
    assert len(third.row["masks"]) == 2
    plain = segmenter(world.image, "the small blue square", history=[*first.messages], masks=[world.left])
    same(plain, second)


def test_history_as_messages_gets_its_image(segmenter, world):
    history = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A square."}]
    result = segmenter(world.image, "it", history=history)
    assert result.messages[0]["content"] == "<image>What is it?"
    assert history[0]["content"] == "What is it?"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing.png", "it"), {"match": "image 'nothing.png' cannot be read"}),
        ((np.zeros((4, 4)), "it"), {"match": r"image is float64 \(4, 4\)"}),
        ((None, " "), {"match": "expression is empty"}),
        (([None, None], ["it"]), {"match": "expression has 1 entries: expected one for each of the 2 images"}),
        ((None, "What is <mask>?"), {"match": "masks has 0 entries: expected one for each of 1 <mask>"}),
        ((None, "What is <bbox>?"), {"match": "boxes has 0 entries"}),
    ],
)
def test_invalid_questions_are_refused(segmenter, arguments, message):
    with pytest.raises(ValueError, **message):
        segmenter(*arguments)


def test_masks_and_history_of_a_batch_are_refused(segmenter, world):
    with pytest.raises(ValueError, match="given for a batch"):
        segmenter([world.image], ["What is <mask>?"], masks=[world.left])
    with pytest.raises(ValueError, match="history ends with a message of 'user'"):
        segmenter(world.image, "it", history=[{"role": "user", "content": "Hello."}])


def test_unknown_options_are_refused(stage_two):
    with pytest.raises(ValueError, match=r"options has \['mask_treshold'\]"):
        Segmenter.from_pretrained(stage_two[1], mask_treshold=0.4)


def test_options_are_those_of_swift_infer(stage_two, rows, answers):
    segmenter = Segmenter.from_pretrained(stage_two[1], device="cpu", num_mask_tokens=2, question="Segment {}.")
    results = segmenter([row["images"][0] for row in rows[:4]], [expression(row) for row in rows[:4]])
    codes = [own for result in results for own in result.codes]
    assert codes and max(map(len, codes)) == 2


def test_min_score_omits_masks_and_keeps_the_text(stage_two, rows, answers):
    least = float(np.median(np.concatenate([answer.scores for answer in answers])))
    segmenter = Segmenter.from_pretrained(stage_two[1], max_new_tokens=48, min_score=least)
    results = segmenter([row["images"][0] for row in rows], [expression(row) for row in rows])
    for result, answer in zip(results, answers, strict=True):
        assert result.text == answer.text
        assert abs(len(result) - (answer.scores >= least).sum()) <= (abs(answer.scores - least) < 1e-4).sum()
    assert 0 < sum(map(len, results)) < sum(map(len, answers))


def test_calibration_beside_the_mask_tokenizer_is_used(stage_two, world, rows, answers, tmp_path):
    import shutil

    folder = tmp_path / "mask_tokenizer"
    shutil.copytree(stage_two[1] / "mask_tokenizer", folder)
    Calibration((0, 1), (0.2, 0.4)).save(folder)
    segmenter = Segmenter.from_pretrained(stage_two[1], max_new_tokens=48, mask_tokenizer=str(folder))
    results = segmenter([row["images"][0] for row in rows[:4]], [expression(row) for row in rows[:4]])
    for result, answer in zip(results, answers, strict=False):
        np.testing.assert_allclose(result.scores, 0.2 + 0.2 * answer.scores, atol=1e-4)


def test_inference_benchmark_runs(segmenter):
    timings = measure_inference(InferenceBenchmark(batches=(2,), repeats=1), segmenter, "checkpoint", "cpu")
    assert [timing.part for timing in timings][-1] == "end to end" and timings[-1].seconds > 0
