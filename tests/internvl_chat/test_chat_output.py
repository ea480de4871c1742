"""The folder written to: never the one read from, and never a mixture of two conversions."""

import json
from pathlib import Path

import pytest
import torch
from chat_models import chat_model, internlm2_files, mask_tokenizer, train_sentencepiece, with_tokenizer
from tiny_models import random_squares, released_state
from transformers import AutoConfig, AutoModelForImageTextToText

from himtok_plugin import MaskTokenizer
from himtok_plugin.internvl_chat.convert import convert_chat_model
from himtok_plugin.internvl_chat.weights import SafetensorsWriter

SKIP = "--skip_tokenizer"


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A conversion with everything: shards, index, text and mask tokenizer."""
    root = tmp_path_factory.mktemp("earlier")
    files = internlm2_files(train_sentencepiece(root))
    convert_chat_model(str(with_tokenizer(files).write(root / "source", shards=3)), root / "out")
    return content(root / "out")


@pytest.fixture
def out(earlier, tmp_path):
    for path, data in earlier.items():
        (tmp_path / "out" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / path).write_bytes(data)
    return tmp_path / "out"


@pytest.fixture
def released(tmp_path):
    (tmp_path / "released").mkdir()
    torch.save(released_state(mask_tokenizer()), tmp_path / "released" / "himtok.pth")
    return tmp_path / "released" / "himtok.pth"


def assert_untouched(himtok, source, out, *options):
    before = content(out)
    for force in ((), ("--force",)):
        status, printed, err = himtok("convert", source, out, *options, *force)
        assert status == 2 and not printed and err.count("\n") == 1
        assert "what is to be converted lies there, expected another folder to write" in err
        assert content(out) == before


@pytest.mark.parametrize("shards", [1, 2])
def test_the_source_is_not_written_over(himtok, tmp_path, monkeypatch, shards):
    source = chat_model().write(tmp_path / "source", shards=shards)
    assert_untouched(himtok, source, source, SKIP)
    (tmp_path / "link").symlink_to(source)
    assert_untouched(himtok, source, tmp_path / "link", SKIP)
    monkeypatch.chdir(source)
    assert_untouched(himtok, source, Path("."), SKIP)
    (tmp_path / "linked").mkdir()
    for path in source.iterdir():  # as a hub's cache is made
        (tmp_path / "linked" / path.name).symlink_to(path)
    assert_untouched(himtok, tmp_path / "linked", source, SKIP)
    outer = tmp_path / "outer"
    inner = chat_model().write(outer / "mask_tokenizer")
    assert_untouched(himtok, inner, outer, SKIP)
    with pytest.raises(ValueError, match="what is to be converted lies there"):
        convert_chat_model(str(source), source, skip_tokenizer=True)


def test_nor_is_the_folder_of_a_mask_tokenizer(himtok, released):
    assert_untouched(himtok, released, released.parent)
    assert_untouched(himtok, released.parent, released.parent)


def test_a_folder_beside_or_within_the_source_is_another_one(himtok, tmp_path):
    source = chat_model().write(tmp_path / "source")
    assert himtok("convert", source, source / "converted", SKIP)[0] == 0
    assert himtok("convert", source, tmp_path, SKIP, "--force")[0] == 0
    assert AutoConfig.from_pretrained(tmp_path).model_type == "internvl" and (source / "model.safetensors").is_file()


def test_nothing_of_an_earlier_conversion_stays_but_other_files_do(himtok, tmp_path, out):
    (out / "notes.txt").write_text("mine")
    source = chat_model(with_masks=False).write(tmp_path / "source")
    assert himtok("convert", source, tmp_path / "fresh", SKIP)[0] == 0
    status, _, err = himtok("convert", source, out, SKIP, "--force")
    assert status == 0, err
    found = content(out)
    assert found.pop((out / "notes.txt").relative_to(out)) == b"mine"
    assert found == content(tmp_path / "fresh")


def test_a_mask_tokenizer_alone_replaces_all_of_it_too(himtok, out, released):
    assert himtok("convert", released, out, "--force")[0] == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors"}
    squares = random_squares(2)
    assert torch.equal(MaskTokenizer.from_pretrained(out).encode(squares), mask_tokenizer().encode(squares))


def test_files_that_are_links_are_replaced_and_what_they_point_to_stays(himtok, tmp_path, out):
    out.rename(tmp_path / "kept")
    out.mkdir()
    for path in (tmp_path / "kept").iterdir():
        (out / path.name).symlink_to(path)
    before = content(tmp_path / "kept")
    source = chat_model().write(tmp_path / "source")
    assert himtok("convert", source, out, SKIP, "--force")[0] == 0
    assert content(tmp_path / "kept") == before
    assert not any(path.is_symlink() for path in out.iterdir())


@pytest.mark.parametrize("written", [0, 1, 30])
def test_a_conversion_that_breaks_off_leaves_no_model(himtok, tmp_path, out, monkeypatch, written):
    source = chat_model().write(tmp_path / "source", shards=2)
    write, count = SafetensorsWriter.write, 0

    def failing(self, tensor):
        nonlocal count
        count += 1
        if count > written:
            raise OSError("no space left on device")
        write(self, tensor)

    monkeypatch.setattr(SafetensorsWriter, "write", failing)
    status, _, err = himtok("convert", source, out, SKIP, "--force")
    assert status == 2 and "no space left on device" in err
    assert not (out / "config.json").exists()
    left = {path.name for path in out.rglob("*")}
    assert left <= {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}, left
    with pytest.raises((OSError, ValueError)):
        AutoConfig.from_pretrained(out)
    monkeypatch.undo()
    assert himtok("convert", source, out, SKIP, "--force")[0] == 0
    AutoModelForImageTextToText.from_pretrained(out)


def test_so_does_one_that_breaks_off_while_the_folder_is_cleared(himtok, tmp_path, out):
    (out / "chat_template.json").mkdir()  # no file, so it cannot be removed like one
    status, _, err = himtok("convert", chat_model().write(tmp_path / "source"), out, SKIP, "--force")
    assert status == 2 and "chat_template.json" in err
    assert not (out / "config.json").exists()


def test_what_is_refused_leaves_an_earlier_conversion_as_it_is(himtok, tmp_path, out):
    before = content(out)
    tied = chat_model(tie_word_embeddings=True)
    tied.state["language_model.output.weight"] = torch.ones(512, 32)
    wrong = chat_model()
    wrong.config["llm_config"]["rms_norm_eps"] = "small"
    for i, (chat, message) in enumerate([(tied, "differs from"), (wrong, "transformers does not take it")]):
        status, _, err = himtok("convert", chat.write(tmp_path / str(i)), out, SKIP, "--force")
        assert status == 2 and message in err
        assert content(out) == before


def test_the_configuration_is_written_last(tmp_path, monkeypatch):
    """The rest of what the tests above rest on."""
    source = chat_model().write(tmp_path / "source")
    there = []
    monkeypatch.setattr(SafetensorsWriter, "__exit__", _recording(there, tmp_path / "out", SafetensorsWriter.__exit__))
    convert_chat_model(str(source), tmp_path / "out", skip_tokenizer=True)
    assert there == [False, False]  # model and mask tokenizer
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "internvl"


def _recording(there, out, leave):
    def noted(self, *error):
        there.append((out / "config.json").exists())
        leave(self, *error)

    return noted
