"""`score_results`: results worked out by hand, and every malformed result named by its row number."""

import time

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from tiny_results import RESULTS, SIZE, column_mask, predicted_mask, write_results

from himtok_plugin.evaluation.scoring import ResultScores, score_results
from himtok_plugin.masks import to_rle


def test_scores_by_hand(tmp_path):
    path = write_results(
        tmp_path / "out.jsonl",
        {
            "masks": [predicted_mask(0), predicted_mask(1)],
            "target_masks": [to_rle(column_mask(0, 1, 2))],
        },  # union: I 8, U 12
        {"masks": [predicted_mask(3)], "target_masks": [to_rle(column_mask(3))]},  # I 4, U 4
        {"masks": [], "target_masks": [to_rle(column_mask(0, 1))]},  # missing: I 0, U 8
        {"masks": [], "target_masks": []},  # rightly nothing
        {"masks": [predicted_mask(0)], "target_masks": []},  # wrongly something: I 0, U 4
    )
    scores = score_results(path)
    assert scores["cIoU"] == pytest.approx(12 / 28)
    assert scores["gIoU"] == pytest.approx((8 / 12 + 1 + 0 + 1 + 0) / 5)
    assert scores["P@0.5"] == pytest.approx(3 / 5) and scores["P@0.9"] == pytest.approx(2 / 5)
    assert (scores["N-acc"], scores["T-acc"]) == (1 / 2, pytest.approx(2 / 3))
    assert (scores["samples"], scores["missing"]) == (5, 1)
    assert 0 < scores["boundary_F"] < 1


def test_masks_below_min_score_do_not_count(tmp_path):
    unsure = {**predicted_mask(0), "score": 0.2}
    unscored = {**predicted_mask(0), "score": None}
    path = write_results(
        tmp_path / "out.jsonl",
        {"masks": [unsure], "target_masks": []},
        {"masks": [predicted_mask(1), unsure], "target_masks": [to_rle(column_mask(1))]},
        {"masks": [unscored], "target_masks": [to_rle(column_mask(0))]},
    )
    scores = score_results(path, min_score=0.5)
    assert (scores["cIoU"], scores["N-acc"], scores["missing"]) == (1, 1, 0)
    assert score_results(path)["N-acc"] == 0


def test_several_true_masks_are_their_union(tmp_path):
    path = write_results(
        tmp_path / "out.jsonl",
        {"masks": [predicted_mask(0, 1)], "target_masks": [to_rle(column_mask(0)), to_rle(column_mask(1))]},
    )
    assert score_results(path)["cIoU"] == 1.0


def test_true_masks_may_be_files_and_polygons(tmp_path, monkeypatch):
    (tmp_path / "masks").mkdir()
    Image.fromarray(column_mask(0).astype(np.uint8) * 255).save(tmp_path / "masks" / "0.png")
    polygons = {"polygons": [[1, 0, 2, 0, 2, 4, 1, 4]], "size": list(SIZE)}
    path = write_results(
        tmp_path / "out.jsonl", {"masks": [predicted_mask(0, 1)], "target_masks": ["masks/0.png", polygons]}
    )
    assert score_results(path, root=tmp_path)["cIoU"] == 1.0
    monkeypatch.chdir(tmp_path)
    assert score_results(path)["cIoU"] == 1.0


def test_an_empty_predicted_mask_is_an_answer(tmp_path):
    path = write_results(
        tmp_path / "out.jsonl", {"masks": [predicted_mask()], "target_masks": [to_rle(column_mask(1))]}
    )
    scores = score_results(path)
    assert scores["missing"] == 0 and scores["T-acc"] == 0.0


def test_boundary_metrics_are_optional_and_progress_ends_at_the_file_size(tmp_path):
    row = {"masks": [predicted_mask(0)], "target_masks": [to_rle(column_mask(0))]}
    path, seen = write_results(tmp_path / "out.jsonl", row, row), []
    assert "boundary_F" not in score_results(path, boundary=False, on_progress=seen.append)
    assert seen == sorted(seen) and seen[-1] == path.stat().st_size


def test_blank_lines_are_left_out_but_count_in_row_numbers(tmp_path):
    path = write_results(tmp_path / "out.jsonl", {"masks": [], "target_masks": []}, "", "[]")
    with pytest.raises(ValueError, match=r"row 3: is \[\]: expected a JSON object"):
        score_results(path)


TRUE = [to_rle(column_mask(0))]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{'masks': []}", "is not JSON"),
        ('{"masks": [], "target_masks": [', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("3", "is 3: expected a JSON object"),
        ({"target_masks": TRUE}, "has no 'masks': expected a result of `swift infer --plugin himtok`"),
        ({"response": "Yes."}, "has no 'masks': expected a result of `swift infer --plugin himtok`"),
        ({"masks": [{**predicted_mask(0), "score": "high"}], "target_masks": TRUE}, r"masks\[0\].score is 'high'"),
        ({"masks": [{**predicted_mask(0), "score": 1.5}], "target_masks": TRUE}, r"masks\[0\].score is 1.5"),
        ({"masks": [{**predicted_mask(0), "score": True}], "target_masks": TRUE}, r"masks\[0\].score is True"),
        ({"masks": [], "target_boxes": [[0, 0, 2, 4]]}, "has 'target_boxes' and no 'boxes'"),
        ({"masks": [], "boxes": [[0, 0]], "target_boxes": [[0, 0, 2, 4]]}, r"boxes\[0\] is \[0, 0\]: expected \[x1"),
        ({"masks": [], "boxes": [], "target_boxes": 3}, r"target_boxes\[0\] is 3: expected \[x1"),
        ({"masks": None, "target_masks": TRUE}, "masks is None: expected a list of masks"),
        ({"masks": [], "target_masks": {"size": [4, 4]}}, "target_masks is {'size': .4, 4.}: expected a list"),
        ({"masks": ["a.png"], "target_masks": TRUE}, r"masks\[0\] is 'a.png': expected a COCO RLE"),
        ({"masks": [{"counts": "0"}], "target_masks": TRUE}, r"masks\[0\].size is None"),
        ({"masks": [{"size": [4, 4], "counts": "~"}], "target_masks": TRUE}, r"row 2: masks\[0\]: counts"),
        ({"masks": [], "target_masks": ["nowhere.png"]}, r"target_masks\[0\]: mask 'nowhere.png' cannot be read"),
        (
            {"masks": [predicted_mask(0)], "target_masks": [{"polygons": [], "size": [5, 4]}]},
            r"target_masks\[0\]: mask has size \(h, w\) = \(5, 4\): expected \(4, 4\)",
        ),
        ({"masks": [], "target_masks": [{"polygons": [[0, 0, 9, 0, 9, 9]], "size": [4, 4]}]}, "far outside"),
    ],
)
def test_a_malformed_row_is_named_by_its_number(tmp_path, row, message):
    path = write_results(tmp_path / "out.jsonl", {"masks": [], "target_masks": TRUE}, row)
    with pytest.raises(ValueError, match=message) as error:
        score_results(path)
    assert f"{path}: row 2: " in str(error.value)


def test_a_score_that_is_not_a_number_is_named_if_min_score_is_set(tmp_path):
    path = write_results(
        tmp_path / "out.jsonl", {"masks": [{**predicted_mask(0), "score": "high"}], "target_masks": TRUE}
    )
    with pytest.raises(ValueError, match=r"row 1: masks\[0\].score is 'high': expected a number in \[0, 1\]"):
        score_results(path, min_score=0.5)


def test_results_without_true_masks_are_counted_and_not_scored(tmp_path):
    """One wholly wrong mask beside nine questions of yes and no is wholly wrong."""
    wrong = {"masks": [predicted_mask(0)], "target_masks": [to_rle(column_mask(3))]}
    answered = [{"response": "Yes", "masks": []}] * 8 + [{"response": "No", "masks": [predicted_mask(1)]}]
    scores = score_results(write_results(tmp_path / "out.jsonl", *answered, wrong))
    assert (scores["cIoU"], scores["gIoU"], scores["N-acc"]) == (0, 0, None)
    assert (scores["samples"], scores["not_scored"]) == (1, 9)
    with pytest.raises(ValueError, match="none of 9 rows has 'target_masks', or one of 'target_boxes': expected a"):
        score_results(write_results(tmp_path / "out.jsonl", *answered))


def test_a_box_is_scored_beside_masks_and_alone(tmp_path):
    both = {"masks": [predicted_mask(0)], "target_masks": TRUE, "boxes": [[0, 0, 1, 4], [9, 9, 10, 10]]}
    rows = [
        {**both, "target_boxes": [[0, 0, 1, 4]]},  # the first one is the answer
        {"masks": [], "boxes": [[0, 0, 2, 4]], "target_boxes": [[0, 0, 3.0, 4]]},  # IoU 2/3
        {"boxes": [], "target_boxes": [[0, 0, 3, 4]]},
        {"masks": [], "boxes": [], "target_boxes": [[0, 0, 1, 1], [1, 1, 2, 2]]},  # nothing says which answers which
    ]
    scores = score_results(write_results(tmp_path / "out.jsonl", *rows))
    assert (scores["cIoU"], scores["samples"], scores["not_scored"]) == (1, 1, 1)
    assert [scores[f"box_acc@{level}"] for level in (0.5, 0.7, 0.9)] == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert (scores["box_IoU"], scores["box_samples"], scores["box_missing"]) == (pytest.approx(5 / 9), 3, 1)
    alone = score_results(write_results(tmp_path / "out.jsonl", *rows[1:3]))
    assert "cIoU" not in alone and alone["box_acc@0.5"] == 0.5 and alone["not_scored"] == 0


@pytest.mark.parametrize("boundary", [True, False])
def test_scores_of_masks_are_compared_with_the_iou_of_matched_masks(tmp_path, boundary):
    def scored(score, *columns):
        return {**predicted_mask(*columns), "score": score}

    rows = [
        # Matched crosswise: IoU 1 and 1/2; one mask too many has an IoU of 0.
        {
            "masks": [scored(0.9, 2), scored(0.8, 0, 1), scored(0.2, 2)],
            "target_masks": [TRUE[0], to_rle(column_mask(2))],
        },
        {
            "masks": [scored(0.4, 1, 2)],
            "target_masks": [to_rle(column_mask(2, 3))],
            "ignore": [to_rle(column_mask(1))],
        },  # 1/2
        {"masks": [scored(0.3, 1), scored(None, 2)], "target_masks": []},
        {"masks": [scored(0.7, 1)]},
    ]
    scores = score_results(write_results(tmp_path / "out.jsonl", *rows), boundary=boundary)
    gaps = np.array([0.9 - 1, 0.8 - 0.5, 0.2, 0.4 - 0.5, 0.3])
    assert scores["scored_masks"] == 5 and scores["Brier"] == pytest.approx((gaps**2).mean())
    assert scores["ECE"] == pytest.approx(np.abs(gaps).sum() / 5)  # each in a bin of its own
    parts = [ResultScores(boundary=boundary) for _ in range(2)]
    for i, row in enumerate(rows):
        parts[i % 2].add(row)
    assert parts[0].merge(parts[1]).compute() == pytest.approx(scores)
    assert "ECE" not in score_results(
        write_results(tmp_path / "out.jsonl", {"masks": [scored(None, 0)], "target_masks": TRUE})
    )


def test_bytes_that_are_not_text_are_named_by_their_row(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"masks": "\xff\xfe"}\n')
    with pytest.raises(ValueError, match="row 1: got byte 0xff at 11, which is not UTF-8"):
        score_results(path)


def test_a_file_without_rows_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="holds no rows"):
        score_results(write_results(tmp_path / "out.jsonl", ""))


@pytest.mark.parametrize("min_score", [-0.1, 1.5, float("nan")])
def test_min_score_must_be_a_number_from_0_to_1(min_score):
    with pytest.raises(ValueError, match=r"min_score: got .*, expected a number in \[0, 1\]"):
        ResultScores(min_score=min_score)


def test_a_single_ignored_mask_and_masks_of_the_wrong_size(tmp_path):
    row = {**RESULTS[0], "ignore": to_rle(column_mask(0))}
    path = write_results(tmp_path / "one.jsonl", row)
    assert score_results(path, boundary=False)["cIoU"] == pytest.approx(4 / 8)
    for boundary in (True, False):
        for key in ("target_masks", "ignore", "masks"):
            wrong = {**RESULTS[0], key: [{"size": [5, 4], "counts": [20]}]}
            with pytest.raises(ValueError, match=r"row 1: .*\(h, w\) = "):
                score_results(write_results(tmp_path / "wrong.jsonl", wrong), boundary=boundary)


def test_more_than_500_results_are_scored_per_second(tmp_path):
    """2,000 on a machine that has nothing else to do; measured with 480 x 640 and json included."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.random((480, 640)), 40)
    shapes = [to_rle(np.roll(noise > np.quantile(noise, 0.9), shift, (0, 1))) for shift in range(0, 60, 10)]
    rows = [{"masks": [{**a, "codes": [1]}], "target_masks": [b]} for a in shapes for b in shapes] * 10
    path = write_results(tmp_path / "out.jsonl", *rows)
    begin = time.process_time()  # others may use the processor as well
    score_results(path, boundary=False)
    assert len(rows) / (time.process_time() - begin) > 500
