"""`compare_results`: differences, and intervals beside a bootstrap that is written out here."""

import json

import numpy as np
import pytest
from tiny_results import first_pixels, write_results, write_scored_run, write_two_runs

from himtok_plugin.evaluation.comparison import compare_results
from himtok_plugin.evaluation.result_keys import name_datasets


@pytest.fixture
def results(tmp_path):
    return write_two_runs(tmp_path)


def test_differences_are_of_the_means_with_intervals_of_a_bootstrap_over_images(results):
    a, b, base, better = results
    compared = compare_results(a, b, resamples=4000)
    found = {each.name: each for each in compared.differences}
    giou = found["gIoU"]
    assert (giou.a, giou.b) == (pytest.approx(base.mean()), pytest.approx(better.mean()))
    assert compared.images == 20
    rng = np.random.default_rng(99)
    per_image = (better - base).reshape(20, 2).sum(1)
    draws = [per_image[rng.integers(0, 20, 20)].sum() / 40 for _ in range(4000)]
    assert [giou.low, giou.high] == pytest.approx(np.percentile(draws, [2.5, 97.5]).tolist(), abs=0.004)
    assert giou.significant == (giou.low > 0)
    assert found["N-acc"].a is None and found["N-acc"].low is None and not found["N-acc"].significant
    assert found["cIoU"].a == pytest.approx(base.mean())  # all unions are 100 pixels


def test_results_are_ordered_by_their_loss_of_iou(results):
    a, b, base, better = results
    rows = compare_results(a, b, resamples=10).rows
    assert rows[0].key == 4 and (rows[0].a, rows[0].b) == (pytest.approx(base[3]), 0.0)
    assert np.all(np.diff([row.b - row.a for row in rows]) >= 0)


def test_equal_runs_do_not_differ_and_the_seed_decides_the_draws(results):
    a, b, *_ = results
    same = compare_results(a, a, resamples=50)
    assert all(each.low in (0, None) and not each.significant for each in same.differences)
    one, other = (compare_results(a, b, resamples=200, seed=seed).differences for seed in (1, 1))
    assert one == other and one != compare_results(a, b, resamples=200, seed=2).differences


def test_the_order_of_results_does_not_matter(results, tmp_path):
    a, b, *_ = results
    lines = b.read_text().splitlines()
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(lines[::-1]) + "\n")
    assert compare_results(a, turned, resamples=20).rows == compare_results(a, b, resamples=20).rows


def test_results_without_true_masks_are_left_out(results):
    a, b, *_ = results
    before = compare_results(a, b, resamples=20)
    for path in (a, b):
        path.write_text(json.dumps({"row": 99, "response": "Yes", "masks": []}) + "\n" + path.read_text())
    assert compare_results(a, b, resamples=20) == before


def test_results_of_different_samples_are_rejected(results, tmp_path):
    a, b, base, _ = results
    lines = b.read_text().splitlines()
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(ValueError, match="fewer.jsonl: lacks 1 row of the other file, row 1 among them"):
        compare_results(a, fewer)
    with pytest.raises(ValueError, match="fewer.jsonl: lacks 1 row"):
        compare_results(fewer, a)
    twice = tmp_path / "twice.jsonl"
    twice.write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(ValueError, match="twice.jsonl: row number 1 occurs more than once, on lines 1 and 41"):
        compare_results(a, twice)
    with pytest.raises(ValueError, match="true pixels: expected"):
        compare_results(a, write_scored_run(tmp_path / "c.jsonl", base, target_masks=[first_pixels(50)]))
    with pytest.raises(ValueError, match="resamples: got 0"):
        compare_results(a, b, resamples=0)


def write_datasets(path, folder, ious):
    """Results of two datasets in a folder, both with rows 1 and 2."""
    rows = []
    for i, iou in enumerate(ious):
        name = f"{folder}/{'val' if i < 2 else 'testA'}.jsonl"
        row = {"row": i % 2 + 1, "dataset": name, "images": [f"{i}.png"], "target_masks": [first_pixels(100)]}
        rows.append({**row, "masks": [first_pixels(round(100 * iou))] if iou else []})
    return write_results(path, *rows)


def test_results_of_several_datasets_are_compared_row_by_row(tmp_path):
    a = write_datasets(tmp_path / "a.jsonl", "rows", (0.5, 0.5, 0.5, 0.5))
    b = write_datasets(tmp_path / "b.jsonl", "/another/machine/rows", (0.5, 0.6, 0.2, 0.5))
    compared = compare_results(a, b, resamples=20)
    assert [row.key for row in compared.rows] == [
        "1 of testA.jsonl",
        "1 of val.jsonl",
        "2 of testA.jsonl",
        "2 of val.jsonl",
    ]
    assert compared.rows[0].b == pytest.approx(0.2) and compared.images == 4
    lines = b.read_text().splitlines()
    b.write_text("\n".join([*lines, lines[3]]) + "\n")
    with pytest.raises(ValueError, match=r"row number 2 of /another/.*testA\.jsonl occurs more than once"):
        compare_results(a, b)
    assert compare_results(a, b, resamples=20, duplicates="last").rows == compared.rows
    b.write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(ValueError, match=r"b.jsonl: lacks 1 row of the other file, row 2 of testA\.jsonl among them"):
        compare_results(a, b)


def test_datasets_are_named_by_the_shortest_end_that_tells_them_apart():
    assert name_datasets(["a/x.jsonl", "b/x.jsonl", "b/y.jsonl"]) == {
        "a/x.jsonl": "a/x.jsonl",
        "b/x.jsonl": "b/x.jsonl",
        "b/y.jsonl": "y.jsonl",
    }
    assert name_datasets(["a/x.jsonl"] * 2) == {"a/x.jsonl": None}


def test_results_with_an_error_are_wrong_answers_of_their_run(tmp_path):
    true, empty = {"target_masks": [first_pixels(100)]}, {"target_masks": []}
    good = write_results(
        tmp_path / "a.jsonl", {"row": 1, "masks": [first_pixels(100)], **true}, {"row": 2, "masks": [], **empty}
    )
    failed = write_results(tmp_path / "b.jsonl", *({"row": i, "error": "?", **t} for i, t in ((1, true), (2, empty))))
    compared = compare_results(good, failed, resamples=20)
    found = {each.name: (each.a, each.b) for each in compared.differences}
    assert found["gIoU"] == found["cIoU"] == found["N-acc"] == found["T-acc"] == (1.0, 0.0)
    assert compared.errors == (0, 2) and compared.to_dict()["errors"] == {"a": 0, "b": 2}


def test_results_whose_truth_is_what_cannot_be_read_are_left_out(tmp_path):
    good = {"row": 1, "masks": [first_pixels(100)], "target_masks": [first_pixels(100)]}
    for truth in ("missing.png", [[1, 1, 5, 5]]):
        path = write_results(tmp_path / "a.jsonl", good, {"row": 2, "error": "?", "target_masks": [truth]})
        assert [row.key for row in compare_results(path, path, resamples=20).rows] == [1]


@pytest.mark.parametrize("number", [1, 1.0, "1"])
def test_a_number_that_a_table_has_changed_is_still_that_of_its_row(tmp_path, number):
    result = {"masks": [first_pixels(100)], "target_masks": [first_pixels(100)]}
    path = write_results(tmp_path / "a.jsonl", {**result, "row": 1}, {**result, "row": number})
    with pytest.raises(ValueError, match="row number 1 occurs more than once"):
        compare_results(path, path)
    named = write_results(tmp_path / "b.jsonl", {**result, "row": 1, "dataset": "d"}, {**result, "row": number})
    assert [row.key for row in compare_results(named, named, resamples=20, duplicates="last").rows] == [1]
