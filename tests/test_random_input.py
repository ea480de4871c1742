"""Random and damaged texts, RLE, polygons and rows: only the package's own errors come out, in one short line.

A small number of each by default; the full numbers are marked `slow`.
"""

import json
import math
import random

import numpy as np
import pytest

from himtok_plugin.data.check.findings import SampleChecker
from himtok_plugin.data.polygon_checks import drop_bad_polygons
from himtok_plugin.data.records import Record, Region
from himtok_plugin.data.sample_reading import _read_sample
from himtok_plugin.data.samples import check_boxes
from himtok_plugin.data.skip_log import AnnotationError, SkipLog
from himtok_plugin.evaluation.results import load_result_runs
from himtok_plugin.jobs.resumable_output import REJECTED
from himtok_plugin.mask_text import codes_to_text, text_to_codes
from himtok_plugin.masks import load_mask
from himtok_plugin.masks.run_lengths import Runs

QUICK = {"texts": 4000, "rle": 2000, "polygons": 1000, "rows": 500}
FULL = {"texts": 200_000, "rle": 100_000, "polygons": 50_000, "rows": 20_000}
NUMBERS = [0, 1, -1, 2.5, -3, 9, 1e-300, 0.1, 63.99, 64, 64.5, 100, 2**31, -(2**31), 2**53, 2**63, 2**64, 1e18, 1e308]
NUMBERS += [-1e308, math.nan, math.inf, -math.inf, 10**25, 10**400, -(10**400), True, False, None]
OTHERS = ["5", "", "NaN", [], [[]], {}, [1, 2], {"x": 1}, b"12", "٣", np.float64(3), np.int32(7), np.nan]
JSON_OTHERS = [other for other in OTHERS if isinstance(other, str | list | dict)]


@pytest.fixture(params=["quick", pytest.param("full", marks=pytest.mark.slow)])
def times(request):
    return QUICK if request.param == "quick" else FULL


def assert_own(error):
    """The error is one that the package itself raises: its message has the form of all messages, in one line."""
    message = str(error)
    assert type(error) in (ValueError, AnnotationError), repr(error)
    assert "expected" in message and "\n" not in message and len(message) < 1500, message


def nested(rng):
    value = []
    for _ in range(rng.choice((3, 50, 400))):
        value = [value]
    return value


def random_number(rng, others=()):
    kind = rng.random()
    if kind < 0.6:
        return rng.uniform(-10, 74) if kind < 0.3 else rng.randrange(-10, 75)
    return rng.choice((*NUMBERS, *others))


def random_polygon(rng, others=OTHERS):
    if rng.random() < 0.05:
        return rng.choice((*others, nested(rng)))
    values = [random_number(rng, others if rng.random() < 0.1 else ()) for _ in range(rng.randrange(0, 14))]
    if rng.random() < 0.5:  # numbers alone, so that many can be drawn
        values = [v if isinstance(v, int | float) and abs(v) < 90 else 7 for v in values]
    return values


def random_size(rng, others=OTHERS):
    if rng.random() < 0.8:
        return [rng.choice((1, 2, 7, 64)), rng.choice((1, 3, 64))]
    return rng.choice(([random_number(rng, others) for _ in range(rng.randrange(0, 4))], *others))


def random_counts(rng, others=OTHERS):
    kind = rng.random()
    if kind < 0.4:
        return "".join(chr(rng.randrange(40, 120)) for _ in range(rng.randrange(0, 12)))
    if kind < 0.5:
        return "".join(chr(rng.randrange(1, 0x3000)) for _ in range(rng.randrange(0, 5)))
    if kind < 0.9:
        return [rng.choice((0, 1, 2, 3, 7, 40, random_number(rng, others))) for _ in range(rng.randrange(0, 9))]
    return rng.choice((*others, nested(rng)))


def random_mask(rng, others=OTHERS):
    size = random_size(rng, others)
    if rng.random() < 0.5:
        polygons = [random_polygon(rng, others) for _ in range(rng.randrange(0, 4))]
        return {"polygons": polygons if rng.random() < 0.95 else rng.choice(others), "size": size}
    return {"counts": random_counts(rng, others), "size": size}


def damaged_text(rng):
    codes = [rng.randrange(0, 1200) for _ in range(rng.randrange(0, 33))]
    text = codes_to_text(codes) if codes else ""
    for _ in range(rng.randrange(0, 6)):
        at = rng.randrange(0, len(text) + 1)
        piece = rng.choice(
            ("<|mt_", "|>", "<|mt_start|>", "<|mt_end|>", "\0", "9" * 5000, "<mask>", "é", "\ud800", "-1")
        )
        text = text[:at] + piece + text[at + rng.randrange(0, 9) :]
    return text


def test_every_text_is_read_and_no_code_is_out_of_range(times):
    rng = random.Random(0)
    for _ in range(times["texts"]):
        text = damaged_text(rng)
        end = 0
        for span in text_to_codes(text, 1024, 32):
            assert end <= span.start < span.end <= len(text) and len(span.codes) <= 32
            assert all(0 <= code < 1024 for code in span.codes)
            end = span.end


def test_every_rle_is_a_mask_of_its_size_or_an_error(times):
    rng = random.Random(1)
    for _ in range(times["rle"]):
        rle = {"counts": random_counts(rng), "size": random_size(rng)}
        try:
            mask = load_mask(rle)
        except ValueError as error:
            assert_own(error)
            continue
        assert list(mask.shape) == list(rle["size"]) and mask.dtype == bool
        assert Runs.from_rle(rle).area == mask.sum()


def test_every_polygon_is_a_mask_or_an_error_and_preparing_keeps_the_good_ones(times):
    rng = random.Random(2)
    drawn = 0
    for i in range(times["polygons"]):
        polygons = [random_polygon(rng) for _ in range(rng.randrange(1, 4))]
        good = []
        for polygon in polygons:
            try:
                good.append(load_mask({"polygons": [polygon], "size": [64, 50]}))
            except ValueError as error:
                assert_own(error)
        drawn += len(good)
        record = Record("a.jpg", (64, 50), "7", (Region({"polygons": polygons}),))
        log = SkipLog()
        try:
            rle = drop_bad_polygons(record, log).rle(0)
        except AnnotationError as error:
            assert error.reason == "mask has no pixels" or not good, error
            continue
        assert len(log.entries) == len(polygons) - len(good), i
        assert np.array_equal(load_mask(rle), np.logical_or.reduce(good))
    assert drawn > times["polygons"] / 5


def test_every_row_is_sound_or_a_fault_in_all_rooms(times, tmp_path):
    rng = random.Random(3)
    check = SampleChecker(tmp_path)
    messages = [{"role": "user", "content": "Segment it."}, {"role": "assistant", "content": "<mask>"}]
    sound = 0
    for _ in range(times["rows"]):
        mask = random_mask(rng, JSON_OTHERS)
        boxes = [[random_number(rng, JSON_OTHERS) for _ in range(4)]] if rng.random() < 0.2 else []
        row = {"messages": messages, "masks": [mask], "objects": {"ref": [], "bbox": boxes}}
        line = json.dumps(row).encode()
        (sample,) = check([line])
        read = _read_sample(1, line, 16, {})
        rejected = read.line.startswith(REJECTED)
        bad_masks = [what for kind, what in sample.faults if kind == "masks" and "no pixels" not in what]
        bad_boxes = [what for kind, what in sample.faults if kind == "boxes"]
        try:
            check_boxes(row["objects"], "row 1")
        except ValueError as error:
            assert_own(error)
            assert bad_boxes and rejected
        else:
            assert rejected == bool(bad_masks), (line, bad_masks)
        assert all("\n" not in what for _, what in sample.faults)
        try:
            load_result_runs({"masks": [], "target_masks": [mask]})
        except ValueError as error:
            assert bad_masks
            assert_own(error)
        else:
            assert not bad_masks
        sound += not rejected
    assert sound > times["rows"] / 20
