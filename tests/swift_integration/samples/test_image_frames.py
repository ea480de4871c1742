"""Images with an EXIF orientation or more than 8 bits: one rule in training, inference and `Segmenter`."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from runs import STAGE_TWO, infer, logged, read_rows, write_rows

from himtok_plugin import Segmenter
from himtok_plugin.masks import load_mask, to_rle
from himtok_plugin.swift_integration.samples.sample_images import (
    load_sample_image,
    load_upright_images,
    read_image_size,
)

ORIENTATION = 274  # EXIF's number of the tag


def turn(source, path, orientation):
    """Store an image so that viewers, which follow EXIF, show it as `source` is."""
    back = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 2: Image.Transpose.FLIP_LEFT_RIGHT}
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    with Image.open(source) as image:
        image.convert("RGB").transpose(back[orientation]).save(path, exif=exif)
    return path


@pytest.fixture(params=[2, 3, 6])
def turned(world, tmp_path, request):
    return turn(world.image, tmp_path / "turned.png", request.param)


@pytest.fixture
def deep(tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray((np.arange(48 * 64).reshape(48, 64) * 20).astype(np.uint16)).save(path)
    return path


def test_every_form_of_an_image_is_upright(world, turned):
    content = turned.read_bytes()
    forms = [
        str(turned),
        {"path": str(turned), "bytes": None},
        {"path": None, "bytes": content},
        content,
        base64.b64encode(content).decode(),
        Image.open(io.BytesIO(content)),
    ]
    expected = np.asarray(Image.open(world.image).convert("RGB"))
    for form in forms:
        (loaded,), header = load_upright_images([form])
        assert np.array_equal(np.asarray(loaded), expected) and header.size == (48, 64)
        assert read_image_size(form) == (48, 64) and np.array_equal(np.asarray(load_sample_image(form)), expected)
    assert load_upright_images([str(world.image)])[0] == [str(world.image)], "it is loaded by ms-swift"


def test_training_sees_the_upright_image_and_its_mask(train, world, turned):
    row = world.segment(world.left)
    losses = [
        logged(train([{**row, "images": [str(image)]}] * 2, per_device_train_batch_size=2, **STAGE_TWO), "loss")
        for image in (world.image, turned)
    ]
    assert losses[0] == losses[1]


def test_a_mask_of_the_stored_pixels_is_refused_in_training(train, world, tmp_path):
    path = turn(world.image, tmp_path / "turned.png", 6)
    row = {**world.segment(to_rle(world.left.T)), "images": [str(path)]}
    message = r"row 1: masks\[0\]: .*\(64, 48\).*expected \(48, 64\).*EXIF orientation 6, .*mogrify -auto-orient"
    with pytest.raises(ValueError, match=message):
        train([row])


def test_an_image_that_would_turn_white_is_refused_in_training(train, world, deep):
    with pytest.raises(ValueError, match=r"row 1: images\[0\] .*deep\.png.*more than 8 bits per channel"):
        train([{**world.segment(world.left), "images": [str(deep)]}])


@pytest.fixture(scope="module")
def answers(stage_two, world, tmp_path_factory):
    """Rows of a scene, and of the same scene stored turned; their results by `swift infer`."""
    folder = tmp_path_factory.mktemp("frames")
    row = read_rows(world.scenes)[0]
    paths = [row["images"][0], *(str(turn(row["images"][0], folder / f"{o}.png", o)) for o in (2, 3, 6))]
    rows = [{**row, "images": [path]} for path in paths]
    options = {"model": stage_two[1], "mask_dir": folder / "pictures"}
    return rows, infer(write_rows(folder / "rows.jsonl", rows), folder / "results.jsonl", **options), folder


def test_results_are_in_the_frame_of_the_upright_image(answers):
    _, results, folder = answers
    assert results[0]["masks"]
    pictures = sorted((folder / "pictures").glob("*_overlay.png"))
    first = np.asarray(Image.open(pictures[0]))
    for result, picture in zip(results[1:], pictures[1:], strict=True):
        assert (result["response"], result["masks"]) == (results[0]["response"], results[0]["masks"])
        assert np.array_equal(np.asarray(Image.open(picture)), first)


def test_a_segmenter_answers_as_swift_infer_for_paths_and_pil_images(answers, stage_two, deep):
    rows, results, _ = answers
    segmenter = Segmenter.from_pretrained(stage_two[1], max_new_tokens=48)
    question = rows[0]["messages"][0]["content"].removeprefix("<image>")
    expected = load_mask({key: results[0]["masks"][0][key] for key in ("size", "counts")})
    for row in rows:
        for image in (row["images"][0], Image.open(row["images"][0])):
            answer = segmenter(image, question)
            assert np.array_equal(answer.masks[0], expected)
            assert answer.overlay().size == expected.shape[::-1]
    with pytest.raises(ValueError, match="more than 8 bits per channel"):
        segmenter(deep, question)
