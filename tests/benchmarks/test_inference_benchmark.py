"""`himtok bench infer`: every part is measured in every batch, with consistent numbers."""

import pytest
import torch

from himtok_plugin.benchmarks.inference import InferenceBenchmark, Timing, measure_inference, time_runs

SMALL = InferenceBenchmark(batches=(1, 2), repeats=1)


def test_encode_and_decode_are_measured_for_every_batch():
    progress = []
    timings = measure_inference(SMALL, on_progress=lambda done, total: progress.append((done, total)))
    assert [(t.part, t.batch) for t in timings] == [
        (part, batch) for batch in (1, 2) for part in ("encode", "decode", "decode soft")
    ]
    assert all(t.device == "cpu" and t.size == "tiny" and 0 < t.seconds <= t.slowest for t in timings)
    assert progress == [(n, 6) for n in range(1, 7)]


def test_end_to_end_counts_the_masks_of_the_answers():
    asked = []

    def ask(images, questions):
        asked.append((images, questions))
        return [["mask", "mask"] for _ in images]

    timings = [t for t in measure_inference(SMALL, ask, "some/checkpoint", "cpu") if t.part == "end to end"]
    assert [(t.batch, t.masks, t.size) for t in timings] == [(1, 2, "some/checkpoint"), (2, 4, "some/checkpoint")]
    assert len(asked) == 4  # each once to warm up
    images, questions = asked[-1]
    assert images[0].size == (64, 64) and questions[0].startswith("Segment ")


def test_masks_per_second_follow_from_the_median():
    assert Timing("encode", "tiny", "cpu", 8, 8, 0.5, 0.7).to_dict()["masks_per_second"] == 16


def test_the_first_run_does_not_count():
    runs = []
    seconds = time_runs(lambda: runs.append(0), 3, torch.device("cpu"))
    assert len(runs) == 4 and len(seconds) == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sizes": ("huge",)}, "sizes: got 'huge'"),
        ({"batches": (0,)}, "batches: got"),
        ({"repeats": 0}, "repeats: got"),
        ({"devices": ("abacus",)}, "device: got 'abacus'"),
    ],
)
def test_settings_that_cannot_be_run_are_rejected(fields, message):
    with pytest.raises(ValueError, match=message):
        InferenceBenchmark(**fields)
