"""The output folder of a conversion is never its source, never another model's, never a mixture of two conversions."""

import json
import os
from pathlib import Path

import pytest
import torch
from chat_models import chat_model, internlm2_files, mask_tokenizer, train_sentencepiece, with_tokenizer
from tiny_models import random_squares, released_state
from transformers import AutoConfig, AutoModelForImageTextToText

from himtok_plugin import MaskTokenizer
from himtok_plugin.files.output_folder import MANIFEST, UNFINISHED
from himtok_plugin.internvl_chat import weight_conversion
from himtok_plugin.internvl_chat.convert import convert_chat_model

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
        assert "this folder holds the files to convert, expected another folder to write to" in err
        assert content(out) == before


@pytest.mark.parametrize("shards", [1, 2])
def test_the_source_is_not_overwritten(himtok, tmp_path, monkeypatch, shards):
    source = chat_model().write(tmp_path / "source", shards=shards)
    assert_untouched(himtok, source, source, SKIP)
    (tmp_path / "link").symlink_to(source)
    assert_untouched(himtok, source, tmp_path / "link", SKIP)
    monkeypatch.chdir(source)
    assert_untouched(himtok, source, Path("."), SKIP)
    (tmp_path / "linked").mkdir()
    for path in source.iterdir():  # like the cache of the hub
        (tmp_path / "linked" / path.name).symlink_to(path)
    assert_untouched(himtok, tmp_path / "linked", source, SKIP)
    outer = tmp_path / "outer"
    inner = chat_model().write(outer / "mask_tokenizer")
    assert_untouched(himtok, inner, outer, SKIP)
    with pytest.raises(ValueError, match="holds the files to convert"):
        convert_chat_model(str(source), source, skip_tokenizer=True)


def test_the_folder_of_a_mask_tokenizer_is_not_overwritten(himtok, released):
    assert_untouched(himtok, released, released.parent)
    assert_untouched(himtok, released.parent, released.parent)


def test_a_folder_beside_or_within_the_source_is_accepted(himtok, tmp_path):
    source = chat_model().write(tmp_path / "source")
    assert himtok("convert", source, source / "converted", SKIP)[0] == 0
    assert himtok("convert", source, tmp_path, SKIP, "--force")[0] == 0
    assert AutoConfig.from_pretrained(tmp_path).model_type == "internvl" and (source / "model.safetensors").is_file()


def test_files_of_an_earlier_conversion_are_removed_and_others_kept(himtok, tmp_path, out):
    (out / "notes.txt").write_text("mine")
    source = chat_model(with_masks=False).write(tmp_path / "source")
    assert himtok("convert", source, tmp_path / "fresh", SKIP)[0] == 0
    status, _, err = himtok("convert", source, out, SKIP, "--force")
    assert status == 0, err
    found = content(out)
    assert found.pop((out / "notes.txt").relative_to(out)) == b"mine"
    assert found == content(tmp_path / "fresh")


ANOTHER_MODEL = {
    "a model": ("config.json", "model.safetensors", "tokenizer.json"),
    "weights alone": ("pytorch_model-00001-of-00002.bin",),
    "a text tokenizer": ("tokenizer_config.json",),
    "an adapter": ("adapter_config.json", "adapter_model.safetensors"),
    "a mask tokenizer": ("mask_tokenizer/config.json", "mask_tokenizer/model.safetensors"),
}


@pytest.mark.parametrize("kind", ANOTHER_MODEL)
@pytest.mark.parametrize("alone", [True, False], ids=["mask tokenizer alone", "chat model"])
def test_another_model_is_never_replaced(himtok, tmp_path, released, kind, alone):
    for name in ANOTHER_MODEL[kind]:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("another's")
    before = content(tmp_path / "out")
    source = released if alone else chat_model().write(tmp_path / "source")
    for force in ((), ("--force",)):
        status, _, err = himtok("convert", source, tmp_path / "out", *([] if alone else [SKIP]), *force)
        assert (
            status == 2 and f"got {ANOTHER_MODEL[kind][0]}" in err and "no earlier `himtok convert` has written" in err
        )
        assert content(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["generation_config.json", "model-00001-of-00003.safetensors", "mask_tokenizer/more"])
def test_a_file_that_has_changed_or_come_since_a_conversion_is_not_replaced(himtok, tmp_path, out, name):
    path = out / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x07" if path.exists() else b"new")
    before = content(out)
    status, _, err = himtok("convert", chat_model().write(tmp_path / "source"), out, SKIP, "--force")
    assert status == 2 and f"got {name}, which no earlier" in err
    assert content(out) == before


def test_a_folder_converted_before_there_were_manifests_is_kept(himtok, tmp_path, out):
    (out / MANIFEST).unlink()
    before = content(out)
    status, _, err = himtok("convert", chat_model().write(tmp_path / "source"), out, SKIP, "--force")
    assert status == 2 and "move or delete the rest yourself" in err and content(out) == before


def test_a_manifest_that_lists_files_elsewhere_costs_none(himtok, tmp_path, released):
    beside = tmp_path / "beside"
    beside.write_text("precious")
    for i, name in enumerate(("../beside", str(beside))):
        out = tmp_path / f"downloaded_{i}"
        out.mkdir()
        (out / MANIFEST).write_text(json.dumps({"command": "himtok convert", "files": {name: None}}))
        assert himtok("convert", released, out, "--force")[0] == 0
        assert beside.read_text() == "precious"


def test_a_mask_tokenizer_alone_replaces_an_earlier_conversion(himtok, out, released):
    assert himtok("convert", released, out, "--force")[0] == 0
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", MANIFEST}
    squares = random_squares(2)
    assert torch.equal(MaskTokenizer.from_pretrained(out).encode(squares), mask_tokenizer().encode(squares))


def test_links_are_replaced_and_their_targets_kept(himtok, tmp_path, out):
    out.rename(tmp_path / "kept")
    out.mkdir()
    for path in (tmp_path / "kept").iterdir():
        (out / path.name).symlink_to(path)
    before = content(tmp_path / "kept")
    source = chat_model().write(tmp_path / "source")
    assert himtok("convert", source, out, SKIP, "--force")[0] == 0
    assert content(tmp_path / "kept") == before
    assert not any(path.is_symlink() for path in out.iterdir())


@pytest.mark.parametrize("written", [0, 1, 2])
def test_an_interrupted_conversion_leaves_the_earlier_one_and_can_be_repeated(
    himtok, tmp_path, out, monkeypatch, written
):
    """It fails at either file of the model, and at the mask tokenizer."""
    before = content(out)
    source = chat_model().write(tmp_path / "source", shards=2)
    save_file, count = weight_conversion.save_file, 0

    def fail_later(*arguments, **options):
        nonlocal count
        count += 1
        if count > written:
            raise OSError("no space left on device")
        save_file(*arguments, **options)

    monkeypatch.setattr(weight_conversion, "save_file", fail_later)
    for folder in (out, tmp_path / "new"):
        count = 0
        status, _, err = himtok("convert", source, folder, SKIP, "--force")
        assert status == 2 and "no space left on device" in err
    assert content(out) == before and not (tmp_path / "new").exists()
    monkeypatch.undo()
    assert himtok("convert", source, out, SKIP, "--force")[0] == 0
    AutoModelForImageTextToText.from_pretrained(out)


def test_a_killed_conversion_can_be_repeated(himtok, tmp_path, out):
    """A kill leaves a temporary folder, or, while files are moved, files of both conversions."""
    source = chat_model().write(tmp_path / "source")
    (tmp_path / "new" / UNFINISHED).mkdir(parents=True)
    (tmp_path / "new" / UNFINISHED / "model.safetensors").write_text("half")
    assert himtok("convert", source, tmp_path / "new", SKIP)[0] == 0
    move, moved = os.replace, []

    def kill_later(old, new):
        if UNFINISHED in str(old):
            moved.append(new)
            if len(moved) > 2:
                raise KeyboardInterrupt
        move(old, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", kill_later)
        assert himtok("convert", source, out, SKIP, "--force")[0] == 130
    assert not (out / "config.json").exists()  # nothing loads the mixture
    assert himtok("convert", source, out, SKIP, "--force")[0] == 0
    assert content(out) == content(tmp_path / "new")


def test_a_rejected_model_leaves_an_earlier_conversion_as_it_is(himtok, tmp_path, out):
    before = content(out)
    tied = chat_model(tie_word_embeddings=True)
    tied.state["language_model.output.weight"] = torch.ones(512, 32)
    wrong = chat_model()
    wrong.config["llm_config"]["rms_norm_eps"] = "small"
    for i, (chat, message) in enumerate([(tied, "differs from"), (wrong, "llm_config.rms_norm_eps")]):
        status, _, err = himtok("convert", chat.write(tmp_path / str(i)), out, SKIP, "--force")
        assert status == 2 and message in err
        assert content(out) == before


def test_the_configuration_is_written_last(tmp_path, monkeypatch):
    source = chat_model().write(tmp_path / "source")
    save_file, has_config = weight_conversion.save_file, []

    def save_and_record(*arguments, **options):
        save_file(*arguments, **options)
        has_config.append((tmp_path / "out" / UNFINISHED / "config.json").exists())

    monkeypatch.setattr(weight_conversion, "save_file", save_and_record)
    convert_chat_model(str(source), tmp_path / "out", skip_tokenizer=True)
    assert has_config == [False, False]  # model and mask tokenizer
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "internvl"
