"""`compare_results`: differences, and intervals beside a bootstrap that is written out here."""

import json

import numpy as np
import pytest
from tiny_results import first_pixels, write_scored_run, write_two_runs

from himtok_plugin.evaluation.comparison import compare_results


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
    with pytest.raises(ValueError, match="fewer.jsonl: lacks 1 rows of the other file, row 1 among them"):
        compare_results(a, fewer)
    with pytest.raises(ValueError, match="fewer.jsonl: lacks 1 rows"):
        compare_results(fewer, a)
    twice = tmp_path / "twice.jsonl"
    twice.write_text("\n".join([*lines, lines[0]]) + "\n")
    with pytest.raises(ValueError, match="is the second of number 1"):
        compare_results(a, twice)
    with pytest.raises(ValueError, match="true pixels: expected"):
        compare_results(a, write_scored_run(tmp_path / "c.jsonl", base, target_masks=[first_pixels(50)]))
    with pytest.raises(ValueError, match="resamples: got 0"):
        compare_results(a, b, resamples=0)
