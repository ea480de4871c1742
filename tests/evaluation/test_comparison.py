"""run_comparison.py: differences and intervals against a bootstrap written out, and the page of rows that differ."""

import json

import numpy as np
import pytest
from PIL import Image

from himtok_plugin.evaluation.comparison import compare_results
from himtok_plugin.evaluation.comparison_page import write_comparison_page
from himtok_plugin.evaluation.protocols import find_protocol
from himtok_plugin.masks.sources import to_rle

SIZE = (10, 10)


def square(pixels):
    mask = np.zeros(SIZE, bool)
    mask.T.flat[:pixels] = True
    return to_rle(mask)


def write(path, ious, **columns):
    """Rows of 100 true pixels each with so many found; two rows per image."""
    rows = []
    for i, iou in enumerate(ious):
        row = {"row": i + 1, "images": [f"{i // 2}.png"], "messages": [{"role": "user", "content": f"<image>Row {i}?"}]}
        found = [square(round(100 * iou))] if iou else []
        rows.append({**row, "response": "It is <b>", "masks": found, "target_masks": [square(100)], **columns})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def results(tmp_path):
    rng = np.random.default_rng(0)
    base = rng.integers(20, 80, 40) / 100
    better = np.clip(base + rng.integers(0, 12, 40) / 100, 0, 1)
    better[3] = 0.0  # one row fell
    return write(tmp_path / "a.jsonl", base), write(tmp_path / "b.jsonl", better), base, better


def test_differences_are_those_of_the_means_and_their_interval_that_of_a_bootstrap_of_images(results):
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


def test_rows_are_ordered_by_what_they_lost(results):
    a, b, base, better = results
    rows = compare_results(a, b, resamples=10).rows
    assert rows[0].key == 4 and (rows[0].a, rows[0].b) == (pytest.approx(base[3]), 0.0)
    assert np.all(np.diff([row.b - row.a for row in rows]) >= 0)


def test_equal_runs_differ_by_nothing_and_the_seed_decides_the_draws(results):
    a, b, *_ = results
    same = compare_results(a, a, resamples=50)
    assert all(each.low in (0, None) and not each.significant for each in same.differences)
    one, other = (compare_results(a, b, resamples=200, seed=seed).differences for seed in (1, 1))
    assert one == other and one != compare_results(a, b, resamples=200, seed=2).differences


def test_order_of_rows_does_not_matter(results, tmp_path):
    a, b, *_ = results
    lines = b.read_text().splitlines()
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(lines[::-1]) + "\n")
    assert compare_results(a, turned, resamples=20).rows == compare_results(a, b, resamples=20).rows


def test_rows_that_ask_for_no_mask_are_passed_over(results):
    a, b, *_ = results
    before = compare_results(a, b, resamples=20)
    for path in (a, b):
        path.write_text(json.dumps({"row": 99, "response": "Yes", "masks": []}) + "\n" + path.read_text())
    assert compare_results(a, b, resamples=20) == before


def test_other_rows_are_refused(results, tmp_path):
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
        compare_results(a, write(tmp_path / "c.jsonl", base, target_masks=[square(50)]))
    with pytest.raises(ValueError, match="resamples: got 0"):
        compare_results(a, b, resamples=0)


def test_the_page_shows_what_fell_and_rose_as_pictures_and_escapes_text(results, tmp_path):
    a, b, *_ = results
    Image.new("RGB", (10, 10), "red").save(tmp_path / "1.png")
    lines = [json.loads(line) for line in a.read_text().splitlines()]
    for row in lines:
        row["images"] = [str(tmp_path / row["images"][0])]
    a.write_text("".join(json.dumps(row) + "\n" for row in lines))
    compared = compare_results(a, b, find_protocol("lisa"), resamples=20)
    write_comparison_page(tmp_path / "page.html", a, b, compared, shown=3)
    page = (tmp_path / "page.html").read_text()
    assert "b is worse: 1 rows" in page and "b is better: 3 rows" in page
    assert "row 4: &lt;image&gt;Row 3?" in page and "It is &lt;b&gt;" in page and "It is <b>" not in page
    assert page.count("data:image/jpeg;base64,") == 4 * 4 and "Protocol lisa" in page


def test_eval_compares_two_files(results, tmp_path, himtok):
    a, b, *_ = results
    status, out, _ = himtok("eval", "--compare", a, b, "--html", tmp_path / "page.html", "--protocol", "per-sentence")
    assert status == 0 and "gIoU" in out and "protocol: per-sentence" in out and "row 4: IoU" in out
    assert (tmp_path / "page.html").exists()
    status, out, _ = himtok("eval", "--compare", a, b, "--json", "-")
    content = json.loads(out)
    assert status == 0 and content["rows"] == 40 and content["fell"][0]["key"] == 4
    assert len(content["metrics"]["gIoU"]["difference"]) == 2
