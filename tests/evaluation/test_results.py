"""Results of a file: lines, questions, scores and masks."""

import numpy as np
import pytest
from PIL import Image
from tiny_results import RESULTS, SIZE, column_mask, predicted_mask, write_results

from himtok_plugin.evaluation.results import (
    drop_low_scores,
    get_question,
    has_true_masks,
    load_result_masks,
    load_result_runs,
    read_results,
)
from himtok_plugin.masks import to_rle


def test_lines_are_numbered_from_1_and_blank_ones_left_out(tmp_path):
    path, consumed = write_results(tmp_path / "out.jsonl", RESULTS[0], "", RESULTS[1]), []
    assert list(read_results(path, consumed.append)) == [(1, RESULTS[0]), (3, RESULTS[1])]
    assert len(consumed) == 3 and consumed[-1] == path.stat().st_size


def test_each_process_reads_its_share(tmp_path):
    path = write_results(tmp_path / "out.jsonl", *RESULTS * 2)
    shares = [[number for number, _ in read_results(path, share=(rank, 4))] for rank in range(4)]
    assert shares == [[4], [1, 5], [2, 6], [3]]


def test_runs_and_pixels_are_the_same_masks(tmp_path):
    Image.fromarray(column_mask(1).astype(np.uint8) * 255).save(tmp_path / "true.png")
    row = {"masks": [predicted_mask(0, 1)], "target_masks": ["true.png"], "ignore": to_rle(column_mask(3))}
    runs, masks = load_result_runs(row, tmp_path), load_result_masks(row, tmp_path)
    assert runs.size == SIZE == masks[0].size
    for loaded, pixels in zip((runs.predicted, runs.true, runs.ignore), masks, strict=True):
        assert [mask.area for mask in loaded] == [mask.sum() for mask in pixels] and len(pixels) == 1
    assert not runs.missing and runs.overlap().intersection == 4


def test_a_result_with_a_target_and_no_predicted_mask_is_missing():
    assert load_result_runs({"masks": [], "target_masks": [to_rle(column_mask(1))]}).missing
    assert not load_result_runs({"masks": [], "target_masks": []}).missing


def test_results_have_true_masks_or_not_and_other_rows_are_rejected():
    assert has_true_masks({"masks": [], "target_masks": []}) and not has_true_masks({"masks": []})
    assert not has_true_masks({"target_boxes": [[0, 0, 1, 1]]})
    with pytest.raises(ValueError, match="has no 'masks': expected a result of `swift infer --plugin himtok`"):
        has_true_masks({"response": "Yes."})


def test_masks_with_a_lower_score_are_dropped_and_those_without_a_score_kept():
    masks = [{**predicted_mask(0), "score": score} for score in (0.2, None, 0.5)]
    assert drop_low_scores({"masks": masks}, 0.5)["masks"] == masks[1:]
    assert drop_low_scores({"masks": masks}, 0.0)["masks"] == masks


def test_the_question_is_the_last_user_message():
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert get_question({"messages": [*turns, {"role": "assistant", "content": "d"}]}) == "c"
    assert get_question({}) == get_question({"messages": [{"role": "user", "content": [{"type": "text"}]}]}) == ""
