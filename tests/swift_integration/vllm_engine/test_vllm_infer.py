"""`swift infer --infer_backend vllm` gives the results of the default engine: text, masks and scores."""

import pytest
from mask_differences import count_different_pixels
from runs import flags, read_rows, run_swift, write_rows
from vllm_servers import MAX_NEW_TOKENS, SWIFT_ENGINE

from himtok_plugin.evaluation.provenance import RunCard

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

MOST_DIFFERENT_PIXELS = 64  # of 64 scenes, decoded from 5 alternatives
STREAMED = 4


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """`swift infer --infer_backend vllm`: returns the result rows and their file."""

    def run(rows, **options):
        root = tmp_path_factory.mktemp("infer")
        options = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": 0, "result_path": root / "out.jsonl", **options}
        argv = flags(plugin="himtok", model=checkpoint, val_dataset=rows, **options, **SWIFT_ENGINE)
        done = run_swift("infer", *argv, cwd=root, timeout=1500)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return read_rows(root / "out.jsonl"), root / "out.jsonl"

    return run


@pytest.fixture(scope="module")
def answered(run, scene_rows):
    return run(scene_rows)


def test_text_is_that_of_the_default_engine(answered, default_answers):
    assert [row["response"] for row in answered[0]] == [row["response"] for row in default_answers]


def test_masks_are_decoded_softly_without_a_request_for_log_probabilities(answered, default_answers):
    rows, file = answered
    different = 0
    for row, expected in zip(rows, default_answers, strict=True):
        different += count_different_pixels(row["masks"], expected["masks"])
        scores = [mask["score"] for mask in expected["masks"]]
        assert [mask["score"] for mask in row["masks"]] == pytest.approx(scores, abs=0.05)
        assert row["logprobs"] is None
    assert different <= MOST_DIFFERENT_PIXELS
    assert RunCard.load(file).mask_decoding == "soft, of the 5 best log-probabilities per token"


def test_streams_have_the_same_masks(run, scene_rows, answered, tmp_path):
    rows, _ = run(write_rows(tmp_path / "some.jsonl", read_rows(scene_rows)[:STREAMED]), stream=True)
    for row, expected in zip(rows, answered[0][:STREAMED], strict=True):
        assert row["response"] == expected["response"] and len(row["masks"]) == len(expected["masks"])
        assert count_different_pixels(row["masks"], expected["masks"]) == 0
        scores = [mask["score"] for mask in expected["masks"]]
        assert [mask["score"] for mask in row["masks"]] == pytest.approx(scores, abs=1e-3)
