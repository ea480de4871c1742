"""Label Studio's JSON: brush masks, polygons, ellipses, rectangles; tasks and regions that cannot be read."""

import json

import numpy as np
import pytest
from PIL import Image

from himtok_plugin.data.catalog import open_reader
from himtok_plugin.data.formats.reader import Source
from himtok_plugin.data.skip_log import SkipLog
from himtok_plugin.masks import load_mask
from himtok_plugin.masks.brush_rle import decode_brush, encode_brush

SIZE = (40, 50)


def region(kind, id="r1", **value):
    return {"id": id, "to_name": "image", "original_height": 40, "original_width": 50, "type": kind, "value": value}


def read(folder, tasks):
    (folder / "project-1-at-2026.json").write_text(json.dumps(tasks))
    Image.new("RGB", SIZE[::-1]).save(folder / "photo.jpg")
    reader, log = open_reader(Source("label-studio", folder, "all")), SkipLog()
    return [record for item in reader.list_items(log) for record in reader.read_records(item, log)], log


def task(*regions, **further):
    return {
        "id": 7,
        "data": {"image": "/data/upload/1/0a1b2c3d-photo.jpg"},
        "annotations": [{"result": regions}],
    } | further


def some_mask():
    mask = np.zeros(SIZE, bool)
    mask[5:30, 10:40] = True
    mask[10:20, 15:25] = False
    return mask


def test_shapes_are_read_with_labels_and_expressions(tmp_path):
    brush = region("brushlabels", format="rle", rle=encode_brush(some_mask()), brushlabels=["cup"])
    brush["meta"] = {"text": ["the left cup"]}
    polygon = region("polygonlabels", points=[[20, 25], [80, 25], [80, 75], [20, 75]], polygonlabels=["box"])
    ellipse = region("ellipse", "r2", x=50, y=50, radiusX=20, radiusY=25, rotation=0)
    label = region("labels", "r2", labels=["plate"])
    rectangle = region("rectanglelabels", x=10, y=10, width=20, height=50, rectanglelabels=["door"])
    (record,), log = read(tmp_path, [task(brush, polygon, ellipse, label, rectangle)])
    assert [each.category for each in record.regions] == ["cup", "box", "plate", "door"]
    cup, box, plate, door = record.regions
    assert np.array_equal(cup.mask, some_mask()) and record.queries[0].expressions == ("the left cup",)
    assert load_mask(box.mask)[10:30, 10:40].all() and load_mask(box.mask).sum() == 600
    assert abs(plate.mask.sum() - np.pi * 10 * 10) < 5
    assert door.mask is None and door.box == (5, 4, 15, 24) and not log.entries


def test_the_last_annotation_that_is_not_cancelled_counts_before_predictions(tmp_path):
    own = region("brushlabels", rle=encode_brush(some_mask()), brushlabels=["mine"])
    guess = region("brushlabels", rle=encode_brush(some_mask()), brushlabels=["guess"])
    kept = {"result": [own]}, {"result": [], "was_cancelled": True}
    (record,), _ = read(tmp_path, [task(annotations=kept, predictions=[{"result": [guess]}])])
    assert [each.category for each in record.regions] == ["mine"]
    (record,), _ = read(tmp_path, [task(annotations=[], predictions=[{"result": [guess]}])])
    assert [each.category for each in record.regions] == ["guess"]


def test_what_cannot_be_read_is_logged_and_the_rest_is_kept(tmp_path):
    good = region("brushlabels", rle=encode_brush(some_mask()), brushlabels=["cup"])
    cut = region("brushlabels", rle=encode_brush(some_mask())[:-9], brushlabels=["cup"])
    other = region("brushlabels", rle=encode_brush(some_mask().T), brushlabels=["hat"])
    other |= {"original_height": 50, "original_width": 40}
    turned = good | {"image_rotation": 90}
    (record,), log = read(tmp_path, [task(good, cut, other, turned), {"id": 8}])
    assert len(record.regions) == 1 and record.incomplete_classes == {"cup", "hat"}
    assert log.counts == {"mask cannot be read": 3, "entry lacks a field": 1}


def test_the_short_form_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected Label Studio's export as JSON"):
        read(tmp_path, [{"image": "photo.jpg", "tag": []}])


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (300, 400)])
def test_brushes_are_inverse_also_for_noise_and_long_runs(shape):
    noise = np.random.default_rng(0).random(shape) < 0.5
    for mask in (noise, np.zeros(shape, bool), np.ones(shape, bool)):
        assert np.array_equal(decode_brush(encode_brush(mask), shape), mask)
    with pytest.raises(ValueError, match="is no brush mask"):
        decode_brush(encode_brush(noise), (shape[0] + 1, shape[1]))
