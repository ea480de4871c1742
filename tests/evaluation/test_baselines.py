"""`evaluate_results` with baselines: numbers worked out by hand on columns of 64 x 64 pixels."""

import numpy as np
import pytest
from PIL import Image
from tiny_models import tiny_model
from tiny_results import wide_mask, write_results

from himtok_plugin.evaluation.baselines import BaselineSettings
from himtok_plugin.evaluation.evaluate import evaluate_results
from himtok_plugin.evaluation.protocols import find_protocol
from himtok_plugin.evaluation.redecoding import Redecoder
from himtok_plugin.masks import to_rle


def texts(question, answer="It is <mask>."):
    return [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": answer}]


def rle(*columns):
    return to_rle(wide_mask(*columns))


def result(row, question, true, found, **further):
    """A result about an image of its own; `true` and `found` are columns of a mask, None without one."""
    masks = [] if found is None else [{**rle(*found), "score": 0.5, "codes": [1]}]
    target = [] if true is None else [rle(*true)]
    fields = {"row": row, "images": [f"{row}.png"], "messages": texts(question), "masks": masks, "target_masks": target}
    return {**fields, **further}


def train_on(folder, *answers):
    """Training rows of (question, columns or None)."""
    rows = (
        {
            "messages": texts(question, "No." if columns is None else "<mask>"),
            "masks": [rle(*columns)] if columns else [],
        }
        for question, columns in answers
    )
    return write_results(folder / "train.jsonl", *rows)


def compare(folder, results, train, **options):
    options = {"boundary": False, **options}
    path = write_results(folder / "out.jsonl", *results)
    return evaluate_results(path, baseline=BaselineSettings([train], options.pop("seed", 0)), **options)


ROAD, CAR, SKY = "Segment the road.", "Segment the car.", "Segment the sky."


def test_a_model_that_looks_is_better_than_with_shuffled_images(tmp_path):
    train = train_on(tmp_path, (ROAD, (0,)), (ROAD, (0,)), (CAR, (3,)), (SKY, None))
    places = [(ROAD, (0,)), (ROAD, (1,)), (ROAD, (2,)), (CAR, (3,)), (CAR, (0, 1))]
    results = [result(i, question, columns, columns) for i, (question, columns) in enumerate(places, 1)]
    results += [result(6, SKY, None, None), result(7, SKY, (2,), (2,))]
    report = compare(tmp_path, results, train)
    assert report.scores["cIoU"] == report.scores["gIoU"] == 1.0
    average, shuffled = report.baselines.average_mask, report.baselines.shuffled
    # Columns: intersection 1, 0, 0, 1, 0, 0, 0; union 1, 2, 2, 1, 3, 0, 1.
    assert average["cIoU"] == pytest.approx(2 / 10)
    assert average["gIoU"] == pytest.approx((1 + 1 + 1) / 7)
    assert (average["N-acc"], average["T-acc"], average["missing"]) == (1.0, pytest.approx(5 / 6), 1)
    # No answer fits another image; the sky that is there gets "no target", and the other way round.
    assert shuffled["cIoU"] == shuffled["gIoU"] == shuffled["N-acc"] == 0.0
    assert shuffled["T-acc"] == pytest.approx(5 / 6) and shuffled["scored_masks"] == 6
    assert report.baselines.samples.known == 7 and report.baselines.samples.no_target == 2
    assert report.baselines.samples.same_phrase == 7


@pytest.mark.parametrize("seed", range(3))
def test_a_model_that_ignores_the_image_scores_the_same_with_shuffled_images(tmp_path, seed):
    train = train_on(tmp_path, (ROAD, (0,)))
    guesses = {ROAD: (0, 1), CAR: (3,), SKY: None}
    rng = np.random.default_rng(seed)
    results = [
        result(i, question, tuple(rng.choice(4, 2, replace=False)) if i % 4 else None, guesses[question])
        for i, question in enumerate([ROAD, CAR, SKY] * 8, 1)
    ]
    report = compare(tmp_path, results, train, seed=seed, boundary=True)
    names = set(report.scores) - {"failures", "not_scored"}
    assert {name: report.baselines.shuffled[name] for name in names} == pytest.approx(
        {name: report.scores[name] for name in names}
    )
    assert report.baselines.samples.unknown == 16 and report.baselines.samples.other_phrase == 0
    assert "boundary_F" in report.baselines.average_mask and "ECE" not in report.baselines.average_mask


def test_samples_without_an_answer_stay_failures_and_the_average_answers_them(tmp_path):
    train = train_on(tmp_path, (ROAD, (0,)), (CAR, (1,)))
    rows = [{"messages": texts(q), "masks": [rle(*c)]} for q, c in ((ROAD, (0,)), (ROAD, (1,)), (CAR, (1,)))]
    rows = write_results(tmp_path / "rows.jsonl", *rows, {"messages": texts(ROAD), "masks": []})
    results = [
        result(1, ROAD, (0,), (0,)),
        result(2, ROAD, (1,), (1,)),
        {**result(4, ROAD, None, None), "error": "no image"},
        {**result(5, ROAD, None, None), "error": "no image", "target_masks": ["none.png"]},  # of no known truth
    ]
    report = compare(tmp_path, results, train, rows=rows)
    assert report.scores["gIoU"] == pytest.approx(2 / 4) and report.scores["failures"] == 3
    average, shuffled, samples = report.baselines.average_mask, report.baselines.shuffled, report.baselines.samples
    assert average["gIoU"] == pytest.approx((1 + 0 + 1 + 0) / 4) and average["samples"] == 4
    assert average["N-acc"] == 0.0 and average["missing"] == 0
    assert shuffled["gIoU"] == 0.0 and (shuffled["samples"], shuffled["missing"]) == (4, 1)
    assert (samples.known, samples.same_phrase, samples.failed) == (4, 2, 2)


def test_the_rules_of_the_results_hold_for_the_baselines(tmp_path):
    """Ignored pixels, least pixels, classes and the least score."""
    train = train_on(tmp_path, (ROAD, (0, 1)))
    results = [
        result(1, ROAD, (0,), (0,), ignore=[rle(1)], category="road"),
        result(2, ROAD, (1,), (1,), ignore=[rle(1)], category="road"),
    ]
    excluded = compare(tmp_path, results, train).baselines
    assert excluded.average_mask["cIoU"] == pytest.approx(1 / 2) and excluded.average_mask["mIoU"] == pytest.approx(
        1 / 2
    )
    foreground = compare(tmp_path, results, train, protocol=find_protocol("himtok")).baselines
    # Columns with the ignored one: 2 of 2 and 1 of 2; then 1 of 2 and 1 of 2.
    assert foreground.average_mask["cIoU"] == pytest.approx(3 / 4)
    assert foreground.shuffled["cIoU"] == pytest.approx(2 / 4)
    results[0]["masks"][0]["score"] = 0.1
    assert compare(tmp_path, results, train, min_score=0.3).baselines.shuffled["missing"] == 1
    with pytest.raises(ValueError, match="expected .* under the protocol 'all-sentences'"):
        compare(tmp_path, results, train, protocol=find_protocol("all-sentences"))


def test_answers_are_resized_to_the_image(tmp_path):
    train = train_on(tmp_path, (ROAD, (0,)))
    wide = to_rle(np.repeat(wide_mask(0), 2, axis=1))
    results = [result(1, ROAD, (0,), (0,)), {**result(2, ROAD, None, None), "target_masks": [wide], "masks": [wide]}]
    report = compare(tmp_path, results, train)
    assert report.baselines.shuffled["cIoU"] == 1.0
    assert report.baselines.average_mask["cIoU"] == pytest.approx(1, abs=0.01)


def test_the_size_of_an_image_without_masks_is_that_of_its_file_or_the_usual_one(tmp_path):
    train = train_on(tmp_path, (ROAD, (0, 1)))
    results = [result(1, ROAD, (0,), (0,)), result(2, ROAD, None, None)]
    # Columns of the first image; the second one has no target, and half of it is found by mistake.
    assert compare(tmp_path, results, train).baselines.average_mask["cIoU"] == pytest.approx(1 / (2 + 2))
    Image.new("RGB", (128, 64)).save(tmp_path / "2.png")
    report = compare(tmp_path, results, train, root=tmp_path)
    assert report.baselines.average_mask["cIoU"] == pytest.approx(1 / (2 + 4), abs=0.01)
    results = [result(i, ROAD, None, None) for i in (1, 3)]
    with pytest.raises(
        ValueError, match=r"out.jsonl: row 1: images: got \['1.png'\], expected an image that can be read"
    ):
        compare(tmp_path, results, train)


def test_a_bad_answer_is_named_by_its_own_row(tmp_path):
    results = [result(1, ROAD, (0,), (0,)), result(2, ROAD, (1,), (1,))]
    results[1]["masks"][0] |= {"size": [32, 64], "counts": "bad"}
    with pytest.raises(ValueError, match=r"out.jsonl: row 2: masks\[0\]"):
        compare(tmp_path, results, train_on(tmp_path, (ROAD, (0,))))


def test_other_answers_are_decoded_again_as_well(tmp_path):
    """With `--resize`, all masks are made from their codes."""
    redecoder = Redecoder(tiny_model())
    results = [result(i, ROAD, (0,), (i,)) for i in (1, 2)]
    report = compare(tmp_path, results, train_on(tmp_path, (ROAD, (0,))), redecoder=redecoder)
    assert report.baselines.shuffled["cIoU"] == report.scores["cIoU"]  # both have the same codes
    results[1]["masks"][0]["codes"] = []
    with pytest.raises(ValueError, match=r"out.jsonl: row 2: masks\[0\].codes"):
        compare(tmp_path, results, train_on(tmp_path, (ROAD, (0,))), redecoder=redecoder)
