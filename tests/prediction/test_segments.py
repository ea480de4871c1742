"""Segments as JSON objects for clients."""

import json

import numpy as np
import pytest

from himtok_plugin.masks import load_mask
from himtok_plugin.masks.polygons import polygons_to_mask
from himtok_plugin.prediction.predictor import PredictedMask
from himtok_plugin.prediction.segments import find_label, make_segments, outline, segment_to_dict

MASK = np.zeros((6, 9), bool)
MASK[1:3, 2:7] = True


def predicted(start: int = 0, end: int = 0, **changes) -> PredictedMask:
    values = {"mask": MASK, "codes": [3, 1], "score": 0.5, "complete": True, "start": start, "end": end}
    return PredictedMask(**{**values, **changes})


def test_all_forms_of_a_segment_are_the_same_mask():
    segment = segment_to_dict(predicted(), "road")
    assert json.loads(json.dumps(segment)) == segment
    assert list(segment) == ["size", "counts", "polygon", "bbox", "score", "codes", "label", "complete"]
    assert np.array_equal(load_mask({key: segment[key] for key in ("size", "counts")}), MASK)
    assert np.array_equal(polygons_to_mask(segment["polygon"], (6, 9)), MASK)
    assert segment["bbox"] == [2, 1, 7, 3] and segment["size"] == [6, 9]
    assert (segment["score"], segment["codes"], segment["label"], segment["complete"]) == (0.5, [3, 1], "road", True)


def test_empty_mask_is_a_segment_too():
    segment = segment_to_dict(predicted(mask=np.zeros((6, 9), bool), score=None))
    assert segment["polygon"] == [] and segment["bbox"] == [0, 0, 0, 0] and segment["score"] is None


def test_outline_that_would_take_long_is_left_out():
    noise = np.random.default_rng(0).random((60, 90)) < 0.5
    sides = sum(np.count_nonzero(np.diff(np.pad(noise, 1), axis=axis)) for axis in (0, 1))
    assert outline(noise, 500) is None and outline(MASK, 13) is None and outline(MASK, 0) is None
    polygons = outline(noise, sides + noise.size)
    assert polygons is not None and np.array_equal(polygons_to_mask(polygons, noise.shape), noise)
    assert outline(MASK, 14) == outline(MASK) == [[2, 1, 7, 1, 7, 3, 2, 3]]
    assert segment_to_dict(predicted(mask=noise), max_outline_sides=500)["polygon"] is None


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("left: ", "left"),
        ("Here are two masks. The red car: ", "The red car"),
        (", right: ", "right"),
        (" and right: ", "right"),
        ("\na cat, asleep: ", "a cat, asleep"),
        ("<ref>a red car</ref>", "a red car"),
        ("I see <|object_ref_start|>the dog<|object_ref_end|> ", "the dog"),
        ("The mask appears at ", None),
        ("", None),
        (" and ", None),
        (": ", None),
        ("label: is it? ", None),
    ],
)
def test_the_label_is_found_in_the_text_before_the_mask(text, label):
    assert find_label(text) == label


def test_labels_of_long_texts_are_found_fast():
    assert len(find_label(" x" * 1_000_000 + ": ")) <= 200


def test_labels_belong_to_their_masks():
    text = "left: MASK, MASK, right: MASK."
    starts = [i for i in range(len(text)) if text.startswith("MASK", i)]
    segments = make_segments(text, [predicted(start, start + 4) for start in starts])
    assert [segment["label"] for segment in segments] == ["left", None, "right"]
