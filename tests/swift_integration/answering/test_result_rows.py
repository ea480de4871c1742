"""Results of `swift infer`: columns for evaluation, the run card, resumed runs."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from runs import infer, read_rows, write_rows

from himtok_plugin.evaluation.evaluate import evaluate_results
from himtok_plugin.evaluation.protocols import find_protocol
from himtok_plugin.evaluation.provenance import RunCard
from himtok_plugin.masks import to_rle
from himtok_plugin.prediction.segmentation_result import SegmentationResult
from himtok_plugin.swift_integration.answering.run_card import describe_probability_source
from himtok_plugin.words.known_words import KnownWords


@pytest.fixture(scope="module")
def rows(world, tmp_path_factory):
    ignore = np.zeros((48, 64), bool)
    ignore[:, :10] = True
    made = [
        world.segment(world.left, category="thing", ignore=[to_rle(ignore)], source={"id": str(i), "task": "x"})
        for i in range(4)
    ]
    made[1]["ignore"] = {"polygons": [[0, 0, 10, 0, 10, 48, 0, 48]], "size": [48, 64]}  # one mask, of another kind
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", made)


def test_results_have_the_evaluation_columns(stage_two, rows, tmp_path):
    out = tmp_path / "out.jsonl"
    answered = infer(rows, out, model=stage_two[1], max_new_tokens=24, write_batch_size=2)
    assert [row["row"] for row in answered] == [1, 2, 3, 4]
    for row, asked in zip(answered, read_rows(rows), strict=True):
        assert row["category"] == "thing" and row["source"] == asked["source"]
        assert row["ignore"] == (asked["ignore"] if isinstance(asked["ignore"], list) else [asked["ignore"]])
    lisa, himtok = (evaluate_results(out, find_protocol(name), rows=rows) for name in ("lisa", "himtok"))
    assert lisa.failures == [] and lisa.scores["classes"] == 1
    assert lisa.scores["cIoU"] != himtok.scores["cIoU"]


def test_results_name_unknown_words_where_there_are_some(stage_two, world, tmp_path):
    known = tmp_path / "known"
    shutil.copytree(stage_two[1], known)
    KnownWords.of_texts(["Segment it."]).save(known)
    asked = [world.segment(world.left), world.row("<image>Segment the bus.", "It is <mask>.", masks=[world.left])]
    rows = write_rows(tmp_path / "asked.jsonl", asked)
    for model, words in ((known, [None, ["the", "bus"]]), (stage_two[1], [None, None])):
        answered = infer(rows, tmp_path / f"{model.name}.jsonl", model=model, max_new_tokens=8)
        assert [row.get("unknown_words") for row in answered] == words
    assert SegmentationResult.from_row({**answered[1], "unknown_words": ["bus"]}, (48, 64)).unknown_words == ["bus"]


def test_run_writes_its_card(stage_two, rows, tmp_path):
    out = tmp_path / "out.jsonl"
    infer(rows, out, model=stage_two[1], max_new_tokens=24, mask_decoding="hard", min_score=0.25, num_mask_tokens=3)
    card = evaluate_results(out, boundary=False).run
    assert card.checkpoint == [str(stage_two[1])] and len(card.checkpoint_hash) == 32
    assert (card.mask_decoding, card.min_score, card.num_mask_tokens, card.refiner) == ("hard", 0.25, 3, "none")
    assert card.seed == 42 and card.versions["ms_swift"]


def test_questions_without_masks_do_not_count_in_mask_scores(stage_two, world, tmp_path):
    """The score of wrong masks does not rise with yes/no questions, whose answers correctly have no mask."""
    box = {"ref": [], "bbox": [[4, 8, 20, 40]]}
    asked = [
        *(world.row("<image>Is it?", "Yes", asks_for_masks=False) for _ in range(9)),
        world.row("<image>What is <mask>?", "A thing.", masks=[world.left]),
        world.row("<image>Where?", "<bbox>", objects=box, asks_for_masks=False),
        world.row("<image>Segment the blue one.", "There is none."),  # no target, as in docs/data.md
        world.segment(world.left),
    ]
    del asked[0]["masks"]
    dataset, out = write_rows(tmp_path / "asked.jsonl", asked), tmp_path / "out.jsonl"
    answered = infer(dataset, out, model=stage_two[1], max_new_tokens=4)
    assert ["target_masks" in row for row in answered] == [False] * 11 + [True] * 2
    assert answered[11]["target_masks"] == [] and len(answered[12]["target_masks"]) == 1
    assert [row.get("target_boxes") for row in answered] == [None] * 10 + [[[4.0, 8.0, 20.0, 40.0]], None, None]
    assert all(row["asks_for_masks"] is False for row in answered[1:9])
    scores = evaluate_results(out, rows=dataset, boundary=False).scores
    assert (scores["samples"], scores["box_samples"], scores["not_scored"], scores["failures"]) == (2, 1, 10, 0)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"stream": True}], ids=str)
def test_the_card_says_how_masks_were_decoded(stage_two, rows, tmp_path, options):
    out = tmp_path / "out.jsonl"
    infer(rows, out, model=stage_two[1], max_new_tokens=24, mask_resize="nearest", **options)
    card = RunCard.load(out)
    assert (card.mask_decoding, card.resize) == ("hard" if "num_beams" in options else "soft", "nearest")
    if "num_beams" in options:
        with pytest.raises(ValueError, match="min_score: got 0.3, expected 0: with .*num_beams=2.* have no score"):
            infer(rows, out, model=stage_two[1], max_new_tokens=24, min_score=0.3, **options)


def test_other_engines_decode_softly_if_they_return_log_probabilities():
    def source(mask_decoding="soft", **options):
        return describe_probability_source(SimpleNamespace(mask_decoding=mask_decoding, **options))

    five, twenty = (f"soft, of the {count} best log-probabilities per token" for count in (5, 20))
    assert source(infer_backend="vllm") == source(infer_backend="vllm", stream=True) == five
    assert source(infer_backend="lmdeploy", logprobs=False) == five and source("hard", infer_backend="lmdeploy") is None
    assert source(infer_backend="vllm", logprobs=True, top_logprobs=2) == five  # more are asked for
    assert source(infer_backend="vllm", logprobs=True, top_logprobs=20) == twenty
    assert source("hard", infer_backend="vllm", logprobs=True, top_logprobs=20) == twenty  # for scores
    assert source(infer_backend="lmdeploy", logprobs=True, stream=True) is None
    assert source(infer_backend="sglang", logprobs=True, top_logprobs=20) is None  # ms-swift returns none
    assert source(infer_backend="transformers") == source() == "soft" and source(num_beams=4, logprobs=True) is None


def test_resumed_run_answers_the_missing_samples(stage_two, rows, tmp_path):
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    infer(rows, whole, model=stage_two[1], max_new_tokens=24)
    write_rows(part, [row for row in read_rows(whole) if row["row"] in (1, 3)])
    infer(rows, part, model=stage_two[1], max_new_tokens=24, resume_result=True)
    resumed = sorted(read_rows(part), key=lambda row: row["row"])
    assert [row["row"] for row in resumed] == [1, 2, 3, 4]
    assert [row["response"] for row in resumed] == [row["response"] for row in read_rows(whole)]
    assert evaluate_results(part, rows=rows, boundary=False).failures == []


def test_resumed_run_over_two_files_continues_both(stage_two, rows, tmp_path):
    """Row numbers start at 1 in both."""
    files = [write_rows(tmp_path / f"{name}.jsonl", read_rows(rows)[:2]) for name in "ab"]
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    options = {"model": stage_two[1], "max_new_tokens": 24}
    answered = infer(files, whole, **options)
    keys = [(row["dataset"], row["row"]) for row in answered]
    assert keys == [(str(file), number) for file in files for number in (1, 2)]
    write_rows(part, [answered[1], answered[2]])
    infer(files, part, resume_result=True, **options)
    assert sorted((row["dataset"], row["row"]) for row in read_rows(part)) == keys


def test_results_without_dataset_are_continued_for_a_single_dataset(stage_two, rows, tmp_path):
    part = write_rows(tmp_path / "part.jsonl", [{"row": number, "response": "?"} for number in (1, 2, 4)])
    infer(rows, part, model=stage_two[1], max_new_tokens=24, resume_result=True)
    assert [row["row"] for row in read_rows(part)] == [1, 2, 4, 3]


def test_results_of_another_dataset_are_not_continued(stage_two, rows, tmp_path):
    part = write_rows(tmp_path / "part.jsonl", [{"row": 1, "dataset": "other.jsonl", "response": "?"}])
    with pytest.raises(ValueError, match=r"--resume_result: .*row 1: dataset: got 'other\.jsonl', expected one of \["):
        infer(rows, part, model=stage_two[1], resume_result=True)


def test_results_without_numbers_are_not_continued(stage_two, rows, tmp_path):
    part = tmp_path / "part.jsonl"
    part.write_text(json.dumps({"response": "?"}) + "\n")
    with pytest.raises(ValueError, match="--resume_result: .*row 1 has no number"):
        infer(rows, part, model=stage_two[1], resume_result=True)
