"""Tracks of "CVAT for video 1.1": objects in key frames and between them, in the images that are the video's frames."""

import numpy as np
import pytest
from on_disk import by_pycocotools, decoded, write_image

SIZE = (48, 64)
SQUARE = [4.0, 4.0, 24.0, 4.0, 24.0, 24.0, 4.0, 24.0]
NOT_INTERPOLATED = "track has no shape in this frame: masks, and shapes of two kinds, are not interpolated"


def points(flat):
    return ";".join(f"{x},{y}" for x, y in np.reshape(flat, (-1, 2)))


def polygon(frame, flat, outside=0, keyframe=1):
    return f'<polygon frame="{frame}" keyframe="{keyframe}" outside="{outside}" points="{points(flat)}"/>'


def moved(flat, by):
    return (np.asarray(flat) + by).tolist()


def video(root, *tracks, images=("frame_000000", "frame_000001", "frame_000002", "frame_000003"), meta=""):
    for number, name in enumerate(images):
        write_image(root / "images" / f"{name}.png", SIZE, seed=number)
    text = "".join(f'<track id="{i}" label="cup">{shapes}</track>' for i, shapes in enumerate(tracks))
    (root / "annotations.xml").write_text(
        f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{meta}{text}</annotations>'
    )
    return root


def masks_by_frame(prepare, root, *arguments):
    rows, summary, _ = prepare("cvat", root, "--task", "masks", *arguments)
    found = {}
    for row in rows:
        found.setdefault(int(row["source"]["image_id"]), []).append(decoded(row["masks"][0]))
    return found, summary


def test_polygons_move_between_key_frames_and_end_at_an_outside_shape(prepare, tmp_path):
    root = video(tmp_path, polygon(0, SQUARE) + polygon(2, moved(SQUARE, 16)) + polygon(3, SQUARE, outside=1))
    found, summary = masks_by_frame(prepare, root)
    assert sorted(found) == [0, 1, 2] and summary["unused"] == {"image has no annotations": 1}
    for frame, (mask,) in found.items():
        np.testing.assert_array_equal(mask, by_pycocotools([moved(SQUARE, 8 * frame)], SIZE))
    (note,) = summary["notes"]
    assert "1 track of a video: objects are in 3 frames" in note and "frame 0 is frame_000000.png" in note


def test_frames_that_are_in_the_file_are_not_interpolated(prepare, tmp_path):
    shapes = [polygon(0, SQUARE), polygon(1, moved(SQUARE, 3), keyframe=0), polygon(2, moved(SQUARE, 16))]
    found, _ = masks_by_frame(prepare, video(tmp_path, "".join(shapes)))
    np.testing.assert_array_equal(found[1][0], by_pycocotools([moved(SQUARE, 3)], SIZE))


def test_a_point_that_is_added_on_the_outline_changes_nothing_between_key_frames(prepare, tmp_path):
    more = [4.0, 4.0, 14.0, 4.0, *SQUARE[2:]]
    found, _ = masks_by_frame(prepare, video(tmp_path, polygon(0, SQUARE) + polygon(2, more)))
    np.testing.assert_array_equal(found[1][0], by_pycocotools([SQUARE], SIZE))


def test_growing_polygons_have_the_mean_size_half_way(prepare, tmp_path):
    large = [4.0, 4.0, 44.0, 4.0, 44.0, 44.0, 4.0, 44.0]
    found, _ = masks_by_frame(prepare, video(tmp_path, polygon(0, SQUARE) + polygon(2, large)))
    np.testing.assert_array_equal(found[1][0], by_pycocotools([[4.0, 4.0, 34.0, 4.0, 34.0, 34.0, 4.0, 34.0]], SIZE))


def test_an_object_stays_until_the_last_frame_that_the_header_states(prepare, tmp_path):
    meta = "<meta><job><size>4</size><start_frame>0</start_frame><stop_frame>3</stop_frame></job></meta>"
    found, _ = masks_by_frame(prepare, video(tmp_path, polygon(1, SQUARE), meta=meta))
    assert sorted(found) == [1, 2, 3]
    found, _ = masks_by_frame(prepare, video(tmp_path, polygon(1, SQUARE)))
    assert sorted(found) == [1]


def test_frames_have_a_step_and_two_objects_share_a_frame(prepare, tmp_path):
    meta = "<meta><task><start_frame>0</start_frame><frame_filter>step=5</frame_filter></task></meta>"
    tracks = (polygon(0, SQUARE) + polygon(10, moved(SQUARE, 8)), polygon(5, moved(SQUARE, 20)))
    root = video(tmp_path, *tracks, images=("frame_000000", "frame_000005", "frame_000010"), meta=meta)
    found, _ = masks_by_frame(prepare, root)
    assert {frame: len(masks) for frame, masks in found.items()} == {0: 1, 5: 2, 10: 1}
    np.testing.assert_array_equal(found[5][0], by_pycocotools([moved(SQUARE, 4)], SIZE))


def test_ellipses_and_boxes_are_interpolated_linearly(prepare, tmp_path):
    ellipse = '<ellipse frame="{}" outside="0" cx="{}" cy="20" rx="10" ry="6"/>'
    box = '<box frame="{}" outside="0" xtl="{}" ytl="5" xbr="40" ybr="30"/>'
    root = video(tmp_path, ellipse.format(0, 12) + ellipse.format(2, 32), box.format(0, 5) + box.format(2, 15))
    found, summary = masks_by_frame(prepare, root)
    np.testing.assert_array_equal(found[1][0], np.roll(found[0][0], 10, axis=1))
    assert summary["unused"]["annotation is a box without a mask"] == 3


def test_painted_masks_are_in_their_key_frames_only_and_the_others_are_counted(prepare, tmp_path):
    shape = '<mask frame="{}" outside="0" rle="0, 12" left="3" top="4" width="4" height="3"/>'
    found, summary = masks_by_frame(prepare, video(tmp_path, shape.format(0) + shape.format(2)))
    assert sorted(found) == [0, 2] and summary["skipped"] == {NOT_INTERPOLATED: 1}


def test_images_with_other_names_are_frames_in_their_natural_order(prepare, tmp_path):
    images = [f"shot {number}" for number in (1, 2, 10)]
    found, _ = masks_by_frame(prepare, video(tmp_path, polygon(0, SQUARE) + polygon(2, SQUARE), images=images))
    rows = prepare("cvat", tmp_path, "--task", "segment_class")[0]
    assert sorted(found) == [0, 1, 2]
    assert [row["images"][0].rsplit("/", 1)[1] for row in rows] == ["shot 1.png", "shot 2.png", "shot 10.png"]


@pytest.mark.parametrize(
    ("images", "meta", "message"),
    [
        ((), "", "has 1 track of a video and no images: expected its frames as images/frame_000000.png"),
        (("a", "b"), "", "has tracks in 3 frames, and 2 images: expected an image for each frame"),
        (("a", "b", "c"), "<size>4</size>", "has tracks in 4 frames, and 3 images"),
    ],
)
def test_frames_without_their_images_are_refused(prepare, tmp_path, images, meta, message):
    root = video(tmp_path, polygon(0, SQUARE) + polygon(2, SQUARE), images=images, meta=f"<meta>{meta}</meta>")
    assert message in prepare("cvat", root, status=2)


@pytest.mark.parametrize("frame", ["x", "-1", "9" * 12, "9" * 5000, None])
def test_a_missing_frame_and_a_bad_track_are_counted(prepare, tmp_path, frame):
    bad = "" if frame is None else polygon(0, SQUARE) + f'<polygon frame="{frame}" points="1,1;2,2;3,1"/>'
    root = video(tmp_path, polygon(0, SQUARE) + polygon(7, SQUARE), bad)
    _, summary = masks_by_frame(prepare, root)
    assert summary["skipped"]["image is missing"] == 4 and summary["skipped"]["entry lacks a field"] == 1


def test_frames_of_another_size_than_the_header_states_are_counted(prepare, tmp_path):
    meta = "<meta><original_size><width>640</width><height>480</height></original_size></meta>"
    error = prepare("cvat", video(tmp_path, polygon(0, SQUARE), meta=meta), status=2)
    assert "image has another size than its annotation" in error


def test_tracks_whose_objects_are_never_visible_are_an_error(prepare, tmp_path):
    error = prepare("cvat", video(tmp_path, polygon(0, SQUARE, outside=1)), status=2)
    assert "has 1 track, expected one that is visible in a frame" in error


def test_tracks_beside_images_are_named_as_not_read(prepare, tmp_path):
    image = f'<image id="0" name="a.png" width="64" height="48">{polygon(0, SQUARE)}</image>'
    image = image.replace("<polygon", '<polygon label="cup"')
    write_image(tmp_path / "images" / "a.png", SIZE)
    _, summary = masks_by_frame(prepare, video(tmp_path, polygon(0, SQUARE), images=(), meta=image))
    assert summary["skipped"] == {"track of a video beside <image> elements is not read": 1}
