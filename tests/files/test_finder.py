"""Files are found by the names that other machines and programs gave them; none is guessed among several."""

import os
import pickle
from pathlib import Path

import pytest

from himtok_plugin.files.finder import AmbiguousNameError, FileFinder, MissingFileError
from himtok_plugin.files.names import portable_names, without_upload_prefix
from himtok_plugin.files.splits import find_split, splits_of_folders
from himtok_plugin.files.walking import walk_files


@pytest.fixture
def tree(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode())
        return FileFinder([tmp_path / "images", tmp_path], (".jpg", ".jpeg", ".png"))

    return make


NAMES_OF_A = [
    "a.jpg",
    "images/a.jpg",
    "images\\a.jpg",
    "C:\\Users\\Bob\\photos\\a.jpg",
    "\\\\server\\share\\a.jpg",
    "/home/other/data/a.jpg",
    "../../elsewhere/a.jpg",
    "./a.jpg",
    "data/a.jpg",
    "/data/upload/1/a.jpg",
    "/data/local-files/?d=day1/a.jpg",
    "/data/local-files/?d=day1%2Fa.jpg",
    "https://host.org/x/a.jpg?token=abc&size=1.5#top",
    "http://host:8080/a.jpg",
    "s3://bucket/key/a.jpg",
    "gs://bucket/a.jpg",
    "file:///C:/photos/a.jpg",
    "A.JPG",
    "images/A.Jpg",
    "a.jpeg",
    "a",
    "0a1b2c3d-a.jpg",
    "data/upload/1/0a1b2c3d-a.jpg",
]


@pytest.mark.parametrize("name", NAMES_OF_A)
@pytest.mark.parametrize("place", ["images/a.jpg", "a.jpg", "images/Train/a.jpg", "images/day1/night/a.jpg"])
def test_a_file_is_found_by_its_last_part_where_that_is_unique(tree, tmp_path, name, place):
    assert tree(place, "images/b.jpg").find(name) == tmp_path / place


@pytest.mark.parametrize(
    ("stored", "name"),
    [("my photo.jpg", "my%20photo.jpg"), ("my photo.jpg", "x/my%2520photo.jpg"), ("Bäume.jpg", "B%C3%A4ume.jpg"),
     ("Ba\u0308ume.jpg", "B\u00e4ume.jpg"), ("100%.jpg", "100%.jpg"), ("a?b.jpg", "x/a?b.jpg"), ("a#b.jpg", "a#b.jpg")],
)  # fmt: skip
def test_encoded_and_composed_names_are_found(tree, tmp_path, stored, name):
    assert tree(f"images/{stored}").find(name) == tmp_path / "images" / stored


def test_the_literal_name_wins(tree, tmp_path):
    assert tree("images/a%20b.jpg", "images/a b.jpg").find("a%20b.jpg") == tmp_path / "images/a%20b.jpg"
    assert tree("images/a.jpg", "a.jpg").find("a.jpg") == tmp_path / "images/a.jpg"


def test_of_several_files_the_one_with_the_names_folders_is_found(tree, tmp_path):
    finder = tree("images/1/a.jpg", "images/2/a.jpg", "images/2/b/a.jpg")
    assert finder.find("C:\\x\\images\\2\\a.jpg") == tmp_path / "images/2/a.jpg"
    assert finder.find("y/2/b/a.jpg") == tmp_path / "images/2/b/a.jpg"


def test_an_ambiguous_name_is_an_error_that_lists_the_files(tree, tmp_path):
    finder = tree("images/1/a.jpg", "images/2/a.jpg")
    with pytest.raises(AmbiguousNameError, match=r"images/1/a\.jpg, .*images/2/a\.jpg"):
        finder.find("C:\\x\\a.jpg")
    assert finder.find("C:\\x\\a.jpg", near=tmp_path / "images/2") == tmp_path / "images/2/a.jpg"


def test_copies_of_a_file_are_not_ambiguous(tree, tmp_path):
    finder = tree("images/1/a.jpg")
    (tmp_path / "images/2").mkdir()
    (tmp_path / "images/2/a.jpg").write_bytes((tmp_path / "images/1/a.jpg").read_bytes())
    assert finder.find("x/a.jpg").name == "a.jpg"


def test_another_suffix_is_found_only_if_asked_for(tree, tmp_path):
    finder = tree("images/a.png")
    with pytest.raises(MissingFileError):
        finder.find("a.jpg")
    assert finder.find("a.jpg", any_suffix=True) == tmp_path / "images/a.png"


def test_the_image_of_another_split_is_not_taken(tree, tmp_path):
    finder = tree("images/train/a.jpg")
    assert finder.find("C:/x/a.jpg") == tmp_path / "images/train/a.jpg"
    for name in ("val/a.jpg", "C:\\x\\valid\\a.jpg", "val2017/a.jpg"):
        with pytest.raises(MissingFileError):
            finder.find(name)
    with pytest.raises(MissingFileError):
        FileFinder([tmp_path], (".jpg",), split="val").find("a.jpg")


@pytest.mark.parametrize("name", ["x" * 300 + ".jpg", "a\0b.jpg", "missing.jpg", "", "/", "%", "https://[bad/a", ".."])
def test_a_name_without_a_file_is_an_error_of_one_line(tree, name):
    with pytest.raises(MissingFileError) as error:
        tree("images/b.jpg").find(name)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_links_that_lead_to_themselves_are_named(tree, tmp_path):
    finder = tree("images/b.jpg")
    (tmp_path / "images/a.jpg").symlink_to("a.jpg")
    with pytest.raises(MissingFileError, match="symbolic links"):
        finder.find("a.jpg")


def test_a_finder_is_pickled_without_its_index(tree):
    finder = tree("images/x/a.jpg")
    assert finder.find("b/a.jpg") == pickle.loads(pickle.dumps(finder)).find("b/a.jpg")
    assert len(pickle.dumps(finder)) < 1000


def test_folders_are_walked_once_behind_links_and_hidden_ones_are_not(tmp_path):
    for name in ("real/a.jpg", "real/.thumbs/a.jpg", "__MACOSX/a.jpg", "other/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    (outside / "c.jpg").touch()
    (tmp_path / "real/loop").symlink_to(tmp_path)
    (tmp_path / "other/far").symlink_to(outside)
    names = [path.relative_to(tmp_path).as_posix() for path in walk_files(tmp_path)]
    assert names == ["other/b.jpg", "other/far/c.jpg", "real/a.jpg"]


def test_folders_that_cannot_be_listed_are_reported(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.jpg").touch()
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    errors = []
    assert [path.name for path in walk_files(tmp_path, errors.append)] == ["a.jpg"]
    assert [Path(error.filename).name for error in errors] == ["closed"]


def test_splits_have_several_names():
    known = ("all", "train", "val", "testA")
    names = ("valid", "Val", "VALIDATION", "Train", "training", "testa", "ALL")
    assert [find_split(name, known) for name in names] == ["val", "val", "val", "train", "train", "testA", "all"]
    assert find_split("retrieval", known) is None
    assert splits_of_folders(["images", "Train2017"]) == {"train"}
    assert splits_of_folders(["val", "x", "y"]) == set() == splits_of_folders(["contest", "train_station"])


def test_names_are_taken_apart():
    assert portable_names("a.jpg") == ["a.jpg"]
    assert "b/a.jpg" in portable_names("https://h/b/a.jpg?x=1")
    assert without_upload_prefix("0a1b2c3d-a.jpg") == "a.jpg"
    assert without_upload_prefix("20260304-a.jpg") is None is without_upload_prefix("a.jpg")


def test_a_file_beside_the_annotation_is_taken_before_all_others(tree, tmp_path):
    finder = tree("labels/a.jpg", "images/a.jpg")
    assert finder.find("C:\\x\\a.jpg", near=tmp_path / "labels") == tmp_path / "labels/a.jpg"
