"""Average training masks: sums and thresholds worked out by hand on columns of a square."""

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier

import numpy as np
import pytest
from tiny_results import wide_mask, write_results

from himtok_plugin.evaluation.average_masks import SIDE, MaskSum, read_average_masks
from himtok_plugin.jobs.processes import Processes
from himtok_plugin.masks import load_mask, to_rle

SIZE = (SIDE, SIDE)


class Exchange:
    """What threads send each other."""

    def __init__(self, count):
        self.values = [None] * count
        self.barrier = Barrier(count)


class Rank(Processes):
    """A thread that stands for a process."""

    def __init__(self, rank, exchange):
        super().__init__(rank, len(exchange.values))
        object.__setattr__(self, "exchange", exchange)

    def gather(self, value):
        self.exchange.values[self.rank] = value
        self.exchange.barrier.wait(60)
        values = deepcopy(self.exchange.values)
        self.exchange.barrier.wait(60)
        return values


def average_of(*answers):
    """The mask of an average: answers are tuples of columns, None for an answer without a mask."""
    total = MaskSum()
    for columns in answers:
        total.add(None if columns is None else wide_mask(*columns) * np.uint8(255))
    average = total.average()
    return average.square >= average.threshold * 255, average.no_target


def row(question, *masks):
    answer = "It is <mask>." * len(masks) or "It is not there."
    texts = [{"role": "user", "content": f"<image>{question}"}, {"role": "assistant", "content": answer}]
    return {"messages": texts, "masks": [to_rle(wide_mask(*columns)) for columns in masks]}


@pytest.mark.parametrize(
    ("answers", "columns"),
    [
        # Columns of 1: 12/16 for the first one, 16/24 for both.
        ([(0,), (0,), (0, 1)], (0,)),
        # 8/12 for the first one, 12/16 for both.
        ([(0,), (0, 1)], (0, 1)),
        # The union is best for each of both: 8/16, as one of them is.
        ([(0,), (1,)], (0, 1)),
        # An answer without a mask counts in the unions: 8/16 for the first one, 12/20 for both.
        ([(0,), (0, 1), None], (0, 1)),
        ([(0,), (0,), (0,), (0, 1), None, None, None, None], (0,)),
    ],
)
def test_the_threshold_has_the_best_ciou_on_the_training_masks(answers, columns):
    mask, no_target = average_of(*answers)
    np.testing.assert_array_equal(mask, wide_mask(*columns))
    assert not no_target


def test_most_answers_decide_whether_there_is_a_target():
    assert average_of((0,), None, None)[1]
    assert not average_of((0,), None)[1]


def test_averages_of_phrases_and_of_all_masks(tmp_path):
    train = write_results(
        tmp_path / "train.jsonl",
        row("Segment the road.", (0,)),
        row("Can you segment the Road?", (0,)),
        row("segment the road", (0,), (1,)),  # several masks are one answer
        row("Segment the car.", (3,)),
        row("Segment the sky."),
        {"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "None."}]},
    )
    averages = read_average_masks([train, train], ["the road", "the sky", "a bus"])
    assert sorted(averages.by_phrase) == ["the road", "the sky"]  # "the car" is not asked for
    for phrase, columns in (("the road", (0,)), ("a bus", (0,))):
        (answer,) = averages.answer(phrase, SIZE)
        np.testing.assert_array_equal(load_mask(answer), wide_mask(*columns))
    assert averages.answer("the sky", SIZE) == []
    assert averages.answer("the road", (32, 128))[0]["size"] == [32, 128]
    np.testing.assert_array_equal(averages.overall.square[0, ::16], np.rint([255 * 6 / 8, 255 * 2 / 8, 0, 255 * 2 / 8]))
    training = averages.training
    assert (training.with_mask, training.without_mask, training.skipped) == (8, 2, 0)


def test_rows_that_training_skips_are_skipped_and_the_first_is_named(tmp_path):
    bad = {**row("Segment the road.", (0,)), "masks": ["none.png"]}
    train = write_results(tmp_path / "train.jsonl", bad, row("Segment the road.", (1,)), bad)
    training = read_average_masks([train], ["the road"]).training
    assert (training.with_mask, training.skipped) == (1, 2)
    assert training.first_skipped.startswith(f"{train}: row 1: masks[0]: ")


def test_files_without_masks_are_refused(tmp_path):
    train = write_results(tmp_path / "train.jsonl", row("Segment the road."))
    with pytest.raises(
        ValueError, match=r"--baseline: got .*train.jsonl without any mask, expected the rows of the train"
    ):
        read_average_masks([train], ["the road"])
    with pytest.raises(ValueError, match="train.jsonl: row 1: is not JSON"):
        read_average_masks([write_results(tmp_path / "train.jsonl", "{")], [])


def test_processes_share_the_rows(tmp_path):
    rows = [row("Segment the road.", (i % 3,)) for i in range(7)] + [row("Segment the car.", (3,))]
    train = write_results(tmp_path / "train.jsonl", *rows)
    phrases = ["the road", "the car", "a bus"]
    with ThreadPoolExecutor() as pool:
        exchange = Exchange(2)
        both = list(pool.map(lambda rank: read_average_masks([train], phrases, None, Rank(rank, exchange)), range(2)))
    whole = read_average_masks([train], phrases)
    for merged in both:
        assert merged.by_phrase.keys() == whole.by_phrase.keys()
        for phrase, average in whole.by_phrase.items():
            np.testing.assert_array_equal(merged.by_phrase[phrase].square, average.square)
        np.testing.assert_array_equal(merged.overall.square, whole.overall.square)
        assert merged.training == whole.training
