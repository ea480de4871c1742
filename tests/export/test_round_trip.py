"""`himtok export` and `himtok prepare` of what it wrote: the same masks, labels and expressions."""

import json
from pathlib import Path

import numpy as np
import pytest
from hard_masks import iou
from PIL import Image
from result_files import expected_masks, usual_results, write_images, write_results

from himtok_plugin.data.catalog import open_reader
from himtok_plugin.data.formats.reader import Source
from himtok_plugin.data.skip_log import SkipLog
from himtok_plugin.export.layouts import LAYOUTS
from himtok_plugin.export.outlines import LEAST_IOU
from himtok_plugin.masks import load_mask

EXACT = [("coco", "masks"), ("labelme", "masks"), ("cvat", "masks"), ("png", "masks"), ("label-studio", "masks")]
OUTLINED = [("coco", "polygons"), ("labelme", "polygons"), ("yolo", "polygons"), ("cvat", "polygons")]
OUTLINED += [("label-studio", "polygons")]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    return write_results(folder / "out.jsonl", usual_results(write_images(folder / "photos")))


def read_back(format, folder, **options):
    """Stem of the image -> label -> masks, and all expressions, as `himtok prepare` reads them."""
    reader, log = open_reader(Source(LAYOUTS[format].reader, folder, "all", **options)), SkipLog()
    masks, expressions = {}, set()
    for item in reader.list_items(log):
        for record in reader.read_records(item, log):
            own = masks.setdefault(Path(record.image).stem, {})
            for region in record.regions:
                mask = region.mask if isinstance(region.mask, np.ndarray) else load_mask(region.mask, record.size)
                own.setdefault(region.category, []).append(mask)
            expressions |= {text for query in record.queries for text in query.expressions}
    assert not log.entries and not log.remarks
    return masks, expressions


def compare(found, expected, least_iou):
    assert found.keys() == expected.keys()
    for stem, labels in expected.items():
        assert found[stem].keys() == labels.keys(), stem
        for label, masks in labels.items():
            pairs = zip(found[stem][label], masks, strict=True)
            assert all(iou(*pair) >= least_iou for pair in pairs), (stem, label)


@pytest.mark.parametrize(("format", "shapes"), EXACT)
def test_masks_come_back_exactly_with_holes_and_parts(himtok, results, tmp_path, format, shapes):
    out = tmp_path / "out"
    status, printed, errors = himtok("export", results, "--to", format, "--shapes", shapes, "--output", out)
    assert status == 0, errors
    masks, expressions = read_back(format, out)
    compare(masks, expected_masks(), 1)
    if format != "coco":  # COCO has no field for expressions that others read
        assert {"the round cheese", "the whole image", "shoes"} <= expressions


@pytest.mark.parametrize(("format", "shapes"), OUTLINED)
def test_polygons_come_back_within_their_tolerance_and_exactly_without_one(himtok, results, tmp_path, format, shapes):
    for tolerance, least_iou in ((1, LEAST_IOU), (0, 1)):
        out = tmp_path / f"out{tolerance}"
        arguments = ("--shapes", shapes, "--tolerance", tolerance, "--output", out)
        status, printed, errors = himtok("export", results, "--to", format, *arguments)
        assert status == 0, errors
        compare(read_back(format, out)[0], expected_masks(), least_iou)


@pytest.mark.parametrize("format", LAYOUTS)
def test_images_are_as_viewers_show_them_and_the_others_byte_by_byte(himtok, results, tmp_path, format):
    assert himtok("export", results, "--to", format, "--output", tmp_path / "out")[0] == 0
    folder = tmp_path / "out" / LAYOUTS[format].images_folder
    assert Image.open(folder / "turned.jpg").size == (80, 60) and Image.open(folder / "anim.png").size == (80, 60)
    assert (folder / "a_1.jpg").read_bytes() == (results.parent / "photos/day2/a_1.jpg").read_bytes()
    assert himtok("export", results, "--to", format, "--output", tmp_path / "out")[0] == 2
    status, _, errors = himtok("export", results, "--to", format, "--output", tmp_path / "out", "--force")
    assert status == 0, errors


def test_prepare_makes_rows_of_an_export(himtok, results, tmp_path):
    himtok("export", results, "--to", "label-studio", "--output", tmp_path / "out")
    rows = tmp_path / "rows.jsonl"
    task = ("--task", "segment")
    status, _, errors = himtok("prepare", "label-studio", "--root", tmp_path / "out", *task, rows)
    assert status == 0, errors
    questions = [json.loads(line)["messages"][0]["content"] for line in rows.read_text().splitlines()]
    assert any("the round cheese" in question for question in questions)
