"""Downloads: full-size masks, with what is switched on, named after the image."""

import io
import json
import zipfile

import numpy as np
import pytest
from fake_client import SIZE, TOKENS, known_prefix
from states import answer, conversation_of, read_png

from himtok_plugin.app.downloads import DOWNLOADS, View, draw_overlay, save_download, write_masks
from himtok_plugin.masks import load_mask


@pytest.fixture
def conversation(tmp_path):
    conversation = conversation_of(tmp_path)
    answer(conversation, "Segment the two things.", scores=(0.9, None), labels=("thing/1", None))
    return conversation


def test_masks_are_images_named_by_number_and_label(conversation):
    with zipfile.ZipFile(io.BytesIO(write_masks(conversation, View()))) as archive:
        assert archive.namelist() == ["01_thing_1.png", "02_mask 2.png"]
        for number, name in enumerate(archive.namelist()):
            assert np.array_equal(read_png(archive.read(name)), known_prefix(SIZE, number, TOKENS) * np.uint8(255))


def test_annotations_hold_labels_scores_and_the_question(conversation, tmp_path):
    coco = json.loads(save_download(DOWNLOADS[2], conversation, View(), tmp_path).read_text("utf-8"))
    assert [each["name"] for each in coco["categories"]] == ["thing/1", "object"]
    assert coco["images"][0]["file_name"] == "a photo.png" and coco["annotations"][0]["score"] == 0.9
    masks = [load_mask(each["segmentation"], SIZE) for each in coco["annotations"]]
    assert all(np.array_equal(mask, known_prefix(SIZE, i, TOKENS)) for i, mask in enumerate(masks))
    path = save_download(DOWNLOADS[3], conversation, View(), tmp_path)
    label_me = json.loads(path.read_text("utf-8"))
    assert path.name == "a photo.json" and label_me["imagePath"] == "a photo.png"
    assert {shape["description"] for shape in label_me["shapes"]} == {"Segment the two things."}


def test_what_is_switched_off_is_in_no_file(conversation, tmp_path):
    view = View(hidden={conversation.masks[0].id})
    coco = json.loads(save_download(DOWNLOADS[2], conversation, view, tmp_path).read_text("utf-8"))
    assert len(coco["annotations"]) == 1
    picture, original = np.array(draw_overlay(conversation, view)), np.array(conversation.image.open_full())
    first = known_prefix(SIZE, 0, TOKENS)
    assert np.array_equal(picture[first], original[first])


def test_the_overlay_shows_the_chosen_number_of_tokens(conversation):
    original = np.array(conversation.image.open_full())
    for tokens in (1, TOKENS):
        changed = (np.array(draw_overlay(conversation, View(tokens=tokens))) != original).any(axis=2)
        shown = known_prefix(SIZE, 0, tokens) | known_prefix(SIZE, 1, tokens)
        below = np.arange(SIZE[0])[:, None] > np.flatnonzero(shown.any(axis=1))[0] + 20  # where no name is written
        assert np.array_equal(changed & below, shown & below)


@pytest.mark.parametrize("kind", DOWNLOADS[1:], ids=lambda kind: kind.title)
def test_without_a_mask_a_sentence_says_so(conversation, tmp_path, kind):
    view = View(hidden={mask.id for mask in conversation.masks})
    with pytest.raises(ValueError, match="masks: got none that is switched on"):
        save_download(kind, conversation, view, tmp_path)
    with pytest.raises(ValueError, match="image: got none"):
        save_download(kind, None, View(), tmp_path)


@pytest.mark.parametrize("text", [None, "", "[1]", "{", '{"hidden": 3}', '{"tokens": "x"}'])
def test_a_view_that_is_none_shows_all(text):
    assert View.from_json(text) == View(frozenset()) or View.from_json(text) == View()


@pytest.mark.parametrize("name", ["../../etc/passwd.png", "CON?.jpg", ".png", "日本語.png"])
def test_file_names_stay_in_their_folder(conversation, tmp_path, name):
    object.__setattr__(conversation.image, "name", name)
    assert save_download(DOWNLOADS[0], conversation, View(), tmp_path).parent == tmp_path
