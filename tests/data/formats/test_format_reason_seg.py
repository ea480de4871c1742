"""ReasonSeg: painting order, ignored regions, texts."""

import json

import numpy as np
import pytest
from on_disk import decoded, write_image
from PIL import Image, ImageDraw

SIZE = (60, 80)
LARGE = [[5.7, 5.2], [60.9, 8.1], [50.3, 50.8], [9.4, 44.6]]
SMALL = [[20.2, 20.9], [35.5, 20.1], [30.8, 33.3]]


def shape(label, points):
    return {"label": label, "labels": [label], "shape_type": "polygon", "image_name": "a.jpg", "points": points,
            "group_id": None, "group_ids": [None], "flags": {}}  # fmt: skip


def write(root, shapes, text=("the thing to sit on",), is_sentence=False, split="val", name="a"):
    folder = root / "ReasonSeg" / split
    write_image(folder / f"{name}.jpg", SIZE)
    entry = {"text": list(text), "is_sentence": is_sentence, "shapes": shapes}
    (folder / f"{name}.json").write_text(json.dumps(entry), encoding="utf-8")
    return folder / f"{name}.json"


def painted(points):
    """Of three points or more."""
    canvas = Image.new("1", SIZE[::-1])
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in points], fill=1, outline=1)
    return np.array(canvas)


def test_smaller_shapes_lie_on_top_and_ignored_ones_are_not_targets(tmp_path, prepare):
    write(tmp_path, [shape("ignore", SMALL), shape("target", LARGE), shape("flag", LARGE)])
    rows, _, _ = prepare("reasonseg", tmp_path, "--split", "val")
    row = rows[0]
    np.testing.assert_array_equal(decoded(row["masks"][0]), painted(LARGE) & ~painted(SMALL))
    np.testing.assert_array_equal(decoded(row["ignore"][0]), painted(SMALL))
    assert "the thing to sit on" in row["messages"][0]["content"]


def test_sentences_are_asked_unchanged_and_every_text_is_a_sample(tmp_path, prepare):
    write(tmp_path, [shape("target", LARGE)], ("Where would one sit?", "What is it?"), True, "train")
    rows, _, _ = prepare("reasonseg", tmp_path)
    assert [row["messages"][0]["content"].removeprefix("<image>").split("?")[0] for row in rows] == [
        "Where would one sit",
        "What is it",
    ]
    assert all("mask" in row["messages"][0]["content"] for row in rows) and "ignore" not in rows[0]


def test_only_ignored_shapes_mean_no_target(tmp_path, prepare):
    write(tmp_path, [shape("ignore", SMALL)])
    rows, summary, _ = prepare("reasonseg", tmp_path, "--split", "val")
    assert rows[0]["masks"] == [] and summary["empty"] == 1 and decoded(rows[0]["ignore"][0]).any()


def test_flags_are_skipped_whatever_their_points_and_a_flagpole_is_a_target(tmp_path, prepare):
    flags = [shape("flag", points) for points in ([], [[3, 3]], [[3, 3], [9, 9]], "none", LARGE)]
    write(tmp_path, [shape("Flag", []), *flags, shape("flagpole", SMALL)])
    rows, summary, _ = prepare("reasonseg", tmp_path, "--split", "val")
    np.testing.assert_array_equal(decoded(rows[0]["masks"][0]), painted(SMALL))
    assert len(rows) == 1 and not summary["skipped"] and not summary["empty"]


def test_a_point_is_a_pixel_and_two_are_a_line(tmp_path, prepare):
    write(tmp_path, [shape("target", SMALL), shape("target", [[70.9, 50.2]]), shape("ignore", [[2.5, 3.9], [2.5, 7]])])
    rows, summary, _ = prepare("reasonseg", tmp_path, "--split", "val")
    expected = painted(SMALL)
    expected[50, 70] = True
    np.testing.assert_array_equal(decoded(rows[0]["masks"][0]), expected)
    line = np.zeros(SIZE, bool)
    line[3:8, 2] = True
    np.testing.assert_array_equal(decoded(rows[0]["ignore"][0]), line)
    assert not summary["skipped"]


def test_shapes_are_painted_in_the_order_of_their_pixels_in_the_image(tmp_path, prepare):
    # By its corners the first one is larger by far, but most of it lies beyond the image.
    outside = [[10, 10], [500, 10], [500, 14], [10, 14]]
    inside = [[0, 0], [79, 0], [79, 30], [0, 30]]
    write(tmp_path, [shape("ignore", outside), shape("target", inside)])
    rows, _, _ = prepare("reasonseg", tmp_path, "--split", "val")
    np.testing.assert_array_equal(decoded(rows[0]["ignore"][0]), painted(outside))
    np.testing.assert_array_equal(decoded(rows[0]["masks"][0]), painted(inside) & ~painted(outside))
    # Crossing itself, the first one has next to no area by the shoelace formula, and many pixels.
    crossing = [[10, 10], [60, 50], [60, 10], [10, 50]]
    write(tmp_path, [shape("target", crossing), shape("ignore", SMALL)])
    rows, _, _ = prepare("reasonseg", tmp_path, "--split", "val")
    np.testing.assert_array_equal(decoded(rows[0]["ignore"][0]), painted(SMALL))
    # Of two that are equal, the one that stands first lies on top.
    write(tmp_path, [shape("target", LARGE), shape("ignore", LARGE)])
    assert "ignore" not in prepare("reasonseg", tmp_path, "--split", "val")[0][0]


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("is not JSON", lambda path: path.write_text(path.read_text()[:-20])),
        ("image is missing", lambda path: path.with_suffix(".jpg").unlink()),
        ("entry lacks a field", lambda path: path.write_text('{"shapes": []}')),
        ("entry lacks a field", lambda path: path.write_text('{"text": ["a"], "shapes": [{"points": [[1, 2]]}]}')),
        ("entry lacks a field", lambda path: path.write_text('{"text": ["a"], "shapes": [{"label": "target"}]}')),
        ("entry lacks a field", lambda path: path.write_text(
            '{"text": ["a"], "shapes": [{"label": "target", "points": []}]}')),
        ("entry lacks a field", lambda path: path.write_text(
            '{"text": ["a"], "shapes": [{"label": "target", "points": [[1, 1e9]]}]}')),
        ("mask has no pixels", lambda path: path.write_text(
            '{"text": ["a"], "shapes": [{"label": "target", "points": [[900, 900], [950, 900], [900, 950]]}]}')),
        ("text is not UTF-8", lambda path: path.write_bytes(path.read_bytes().replace(b"sit", b"s\x81t"))),
    ],
)  # fmt: skip
def test_a_bad_file_is_counted(tmp_path, prepare, reason, spoil):
    write(tmp_path, [shape("target", LARGE)], name="good")
    spoil(write(tmp_path, [shape("target", LARGE)]))
    rows, summary, _ = prepare("reasonseg", tmp_path, "--split", "val")
    assert len(rows) == 1 and summary["skipped"] == {reason: 1}
    assert reason in prepare("reasonseg", tmp_path, "--split", "val", "--strict", status=2)


def test_texts_in_cp1252_are_read(tmp_path, prepare):
    path = write(tmp_path, [shape("target", LARGE)])
    path.write_bytes(path.read_bytes().replace(b"sit", b"s\x92t"))  # cp1252's apostrophe
    rows, _, _ = prepare("reasonseg", tmp_path, "--split", "val")
    assert "to s’t on" in rows[0]["messages"][0]["content"]
