"""`himtok segment` with a model that answers as the test says: files, printed answers, exit statuses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from himtok_plugin.cli import main, segmenting
from himtok_plugin.client import AnswerUpdate, ClientError, ServerUnreachableError
from himtok_plugin.export.run import ExportOptions, export_results
from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import load_mask, to_rle
from himtok_plugin.masks.drawing import can_draw, draw_tag
from himtok_plugin.prediction.segmentation_result import SegmentationResult
from himtok_plugin.segmenting.answerers import FileQuestion, LocalAnswerer, ServerAnswerer, open_image
from himtok_plugin.segmenting.result_files import draw_result

SIZE = 20, 30  # (h, w)


def mask_of(size=SIZE):
    mask = np.zeros(size, bool)
    mask[5:12, 8:20] = True
    return mask


class FakeSegmenter:
    """Answers every question with one mask; the expression says what else happens."""

    def __init__(self):
        self.batches = []

    def __call__(self, images, expressions):
        self.batches.append(list(expressions))
        if any("crash" in each for each in expressions):
            raise RuntimeError("out of\nmemory")
        return [self.answer(image, each) for image, each in zip(images, expressions, strict=True)]

    def answer(self, image, expression):
        nothing = "nothing" in expression
        text = "There is none." if nothing else f"It is <ref>it</ref>{codes_to_text([1, 2])}."
        masks = [] if nothing else [mask_of((image.height, image.width))]
        messages = [
            {"role": "user", "content": f"<image>Segment {expression}."},
            {"role": "assistant", "content": text},
        ]
        score = 0.3 if "doubtful" in expression else 0.9
        return SegmentationResult(
            text,
            np.stack(masks) if masks else np.zeros((0, image.height, image.width), bool),
            np.array([score] * len(masks)),
            np.array([True] * len(masks)),
            [[1, 2]] * len(masks),
            image,
            {"messages": messages},
            unknown_words=["bus"] if "bus" in expression else [],
        )


@pytest.fixture
def model(monkeypatch):
    """The loaded model of all runs, and how often it was loaded."""
    segmenter = FakeSegmenter()
    segmenter.loads = 0

    def load(*_):
        segmenter.loads += 1
        return LocalAnswerer(segmenter)

    monkeypatch.setattr(segmenting, "_load_answerer", load)
    return segmenter


@pytest.fixture
def photo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my photo.jpg"
    Image.new("RGB", SIZE[::-1], "gray").save(path)
    return path


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["segment", *map(str, arguments)])
    return stop.value.code


def test_one_image_gets_a_picture_beside_the_working_folder_and_the_answer_is_printed(photo, model, capsys):
    assert run("my photo.jpg", "the doubtful bus") == 0
    out = capsys.readouterr().out
    assert "the doubtful bus" in out and "It is <ref>it</ref>[mask 0.30, uncertain]." in out
    assert 'training had the word "bus"' in out and "my photo_segmented.png" in out
    with Image.open("my photo_segmented.png") as picture:
        assert picture.size == SIZE[::-1] and np.ptp(np.asarray(picture)) > 100
    assert run("my photo.jpg", "it") == 0  # an earlier picture stays
    assert {path.name for path in photo.parent.glob("*.png")} == {"my photo_segmented.png", "my photo_2_segmented.png"}


def test_images_of_a_folder_are_asked_together_and_other_files_are_named(photo, model, capsys, monkeypatch):
    folder = photo.parent / "photos"
    for name in ("a.png", "below/a.png", "b.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (30, 20)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(read=lambda: "the dog\n\n the cat \n"))
    assert run(folder, photo, "-", "--output", "out", "--masks", "masks") == 0
    assert model.loads == 1 and len(model.batches) == 1 and len(model.batches[0]) == 8
    assert "1 file without an image's suffix (notes.txt)" in capsys.readouterr().err
    assert len(list((photo.parent / "out").iterdir())) == 8 and len(list((photo.parent / "masks").iterdir())) == 8
    for path in (photo.parent / "masks").iterdir():
        assert (load_mask(path) == mask_of()).all()


def test_a_bad_image_and_a_failure_of_the_model_cost_only_their_own_answers(photo, model, capsys):
    (photo.parent / "broken.png").write_text("no image")
    assert run("broken.png", photo, "it", "--json") == 1
    captured = capsys.readouterr()
    broken, good = map(json.loads, captured.out.splitlines())
    assert "cannot be read" in broken["error"] and "masks" not in broken and len(good["masks"]) == 1
    assert broken["messages"][0] == good["messages"][0]  # the question as it is asked
    assert "1 of 2 questions could not be answered" in captured.err
    answers = LocalAnswerer(model).answer([FileQuestion(photo, "it"), FileQuestion(photo, "crash")])
    assert len(answers[0]) == 1 and answers[1] == "out of memory"


def test_an_answer_without_a_mask_is_said_and_leaves_no_picture(photo, model, capsys):
    assert run(photo, "nothing", "--masks", "masks", "--output", "a.png") == 1
    assert "no mask: the answer has none" in capsys.readouterr().out
    assert not list(photo.parent.glob("*.png")) and not (photo.parent / "masks").exists()


def test_a_picture_that_is_there_is_replaced_only_by_force(photo, model, capsys):
    mine = photo.parent / "mine.png"
    Image.new("RGB", (4, 4)).save(mine)
    assert run(photo, "it", "--output", mine) == 2 and Image.open(mine).size == (4, 4)
    assert "which is there already, expected a new file, or --force" in capsys.readouterr().err
    assert run(photo, "it", "--output", mine, "--force") == 0 and Image.open(mine).size == SIZE[::-1]


def test_a_second_run_in_a_folder_leaves_out_the_pictures_of_the_first(photo, model, capsys):
    for name in ("movie.mpg", "paper.pdf"):
        (photo.parent / name).write_text("no image")
    assert run(".", "it") == 0 and run(".", "it") == 0
    assert "1 picture that an earlier run has written" in capsys.readouterr().err
    assert model.batches == [["it"], ["it"]]


def test_names_that_are_no_text_are_escaped(photo, model, capsys):
    odd = photo.parent / "caf\udce9.png"
    try:
        Image.new("RGB", (30, 20)).save(odd)
    except OSError as error:
        pytest.skip(f"the file system refuses such names: {error}")
    assert run(odd, "it") == 0 and "caf\\udce9.png: it" in capsys.readouterr().out
    assert run(odd, "it", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"][0]["path"] == str(odd)


def test_tags_grow_with_the_picture_and_labels_that_the_font_lacks_become_numbers(photo, model):
    (answer,) = LocalAnswerer(model).answer([FileQuestion(photo, "it")])
    assert draw_result(answer, ["\N{CJK UNIFIED IDEOGRAPH-732B}"]).tobytes() == draw_result(answer, ["1"]).tobytes()
    assert can_draw("the dog 0.9") and not can_draw("\N{CJK UNIFIED IDEOGRAPH-732B}")
    small, large = Image.new("RGB", (400, 400)), Image.new("RGB", (400, 400))
    draw_tag(small, (0, 400), "it", (230, 60, 60))
    draw_tag(large, (0, 400), "it", (230, 60, 60), scale=3)
    assert np.count_nonzero(large) > 7 * np.count_nonzero(small)


def test_printed_rows_can_be_exported(photo, model, capsys):
    assert run(photo, "it", "--json") == 0
    (photo.parent / "results.jsonl").write_text(capsys.readouterr().out)
    options = ExportOptions("png")
    assert export_results(photo.parent / "results.jsonl", photo.parent / "exported", options)
    assert any((photo.parent / "exported").rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("my photo.jpg", "my photo.jpg"), "expression: got the image"),
        (("missing.jpg", "it"), "image: got 'missing.jpg', which does not exist"),
        (("empty", "it"), "without images"),
        (("my photo.jpg", " "), "expression: got an empty text"),
        (("my photo.jpg", "<mask>?"), "expected no <mask>"),
        (("my photo.jpg", "it", "--output", "my photo.jpg"), "which is the image itself"),
        (("my photo.jpg", "it", "--output", "out.psd"), "expected a picture such as out.png, or a folder"),
        (("my photo.jpg", "it", "--masks", "my photo.jpg"), "masks: got the file"),
        (("my photo.jpg", "it", "--base_url", "http://h", "--device", "cpu"), "base_url: got it beside"),
        (("my photo.jpg", "my photo.jpg", "copy.jpg", "it", "--output", "a.png"), "does not exist"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(photo, model, capsys, arguments, reason):
    (photo.parent / "empty").mkdir()
    assert run(*arguments) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and reason in errors[0] and model.loads == 0


class FakeClient:
    """A server that answers as the question says."""

    def ask(self, messages, images):
        question = messages[-1]["content"]
        if "refuse" in question:
            raise ClientError("image: got too many pixels")
        if "gone" in question:
            raise ServerUnreachableError("http://h/v1: no server answers")
        segment = {**to_rle(mask_of()), "codes": [1, 2], "score": 0.8, "complete": True, "label": None, "polygon": []}
        yield AnswerUpdate("It is ")
        yield AnswerUpdate(f"It is {codes_to_text([1, 2])}.", [segment], None, True, unknown_words=["bus"])


def test_a_server_gives_the_same_results(photo):
    answerer = ServerAnswerer(FakeClient(), "Segment {}.")
    (answer,) = answerer.answer([FileQuestion(photo, "the bus")])
    assert (answer.masks[0] == mask_of()).all() and answer.scores[0] == 0.8 and answer.unknown_words == ["bus"]
    assert answer.messages[0]["content"] == "<image>Segment the bus." and answer.image.size == SIZE[::-1]
    assert answerer.answer([FileQuestion(photo, "refuse")]) == ["image: got too many pixels"]
    with pytest.raises(ServerUnreachableError):
        answerer.answer([FileQuestion(photo, "gone")])


def test_images_are_upright_as_the_model_sees_them(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (20, 30)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="cannot be read"):
        open_image(tmp_path / "deep.png")
