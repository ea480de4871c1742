"""`himtok init`, `convert` and `encode`: output, files and exit status."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import random_squares, released_state, tiny_model

from himtok_plugin import resources
from himtok_plugin.mask_text import codes_to_text, text_to_codes
from himtok_plugin.mask_tokenizer import MaskTokenizer
from himtok_plugin.masks import load_mask, to_square


@pytest.fixture
def tokenizer(tmp_path):
    """Folder of a tiny tokenizer, said to be trained: 4 tokens of 12 codes."""
    folder = tmp_path / "tokenizer"
    tiny_model(codebook_ready=True).save_pretrained(folder)
    return folder


def assert_rejected(result, message):
    status, out, err = result
    assert status == 2 and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_init_writes_a_tokenizer_that_loads(himtok, tmp_path):
    out = tmp_path / "new"
    fields = ["--set", "encoder_layers=1", "--set", "decoder_layers=1", "--set", "pixel_channel_multipliers=[1,1,1,2]"]
    status, printed, _ = himtok("init", "--size", "tiny", out, *fields, "--set", "latent_layout=legacy_reshape")
    assert status == 0 and printed.strip() == str(out)
    config = MaskTokenizer.from_pretrained(out).config
    assert (config.encoder_layers, config.image_size, config.latent_layout) == (1, 32, "legacy_reshape")
    assert config.pixel_channel_multipliers == [1, 1, 1, 2]


def test_init_draws_the_same_weights_for_the_same_seed(himtok, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        himtok("init", tmp_path / name, "--seed", seed, "--set", "encoder_layers=1", "--set", "decoder_layers=1")
    a, b, c = (MaskTokenizer.from_pretrained(tmp_path / name).latent_tokens for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_init_overwrites_only_its_own_files_and_only_with_force(himtok, tokenizer, tmp_path):
    before = (tokenizer / "config.json").read_text()
    for force in ((), ("--force",)):  # another command wrote these
        assert_rejected(himtok("init", tokenizer, *force), "got config.json and 1 more, which no earlier `himtok init`")
    assert (tokenizer / "config.json").read_text() == before
    out, small = tmp_path / "new", ("--set", "encoder_layers=1", "--set", "decoder_layers=1")
    assert himtok("init", out, *small)[0] == 0
    (out / "notes.txt").write_text("mine")
    assert_rejected(himtok("init", out, *small), "is not empty; pass --force")
    assert himtok("init", out, "--seed", 3, *small, "--force")[0] == 0
    assert (out / "notes.txt").read_text() == "mine"
    (out / "config.json").write_text((out / "config.json").read_text() + " ")  # no longer what init wrote
    assert_rejected(himtok("init", out, *small, "--force"), "got config.json, which no earlier")
    assert_rejected(himtok("init", tokenizer / "config.json", "--force"), "is a file, expected a folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "huge"), "size='huge': expected one of"),
        (("--set", "colour=3"), "colour=3: expected a field of MaskTokenizerConfig"),
        (("--set", "codebook_size"), "--set codebook_size: expected FIELD=VALUE"),
        (("--set", "codebook_size=many"), "codebook_size='many': expected a positive integer"),
        (("--set", "decoder_width=null"), "decoder_width=None: expected a positive integer"),
    ],
)
def test_init_rejects_sizes_and_fields_that_do_not_exist(himtok, tmp_path, arguments, message):
    assert_rejected(himtok("init", tmp_path / "out", *arguments), message)
    assert not (tmp_path / "out").exists()


def test_shorten_writes_a_mask_tokenizer_with_fewer_codes(himtok, tokenizer, tmp_path):
    out = tmp_path / "short"
    status, printed, _ = himtok("shorten", out, "--num_mask_tokens", 8)
    assert status == 0 and printed.strip() == str(out)
    assert MaskTokenizer.from_pretrained(out).config.num_mask_tokens == 8
    assert_rejected(himtok("shorten", out, "--num_mask_tokens", 8), "is not empty; pass --force")
    square = ("--num_mask_tokens", 2, "--mask_tokenizer", tokenizer)
    assert_rejected(himtok("shorten", tmp_path / "new", *square), "code_scheme='square': expected 'box'")


def test_convert_writes_what_loads_as_the_released_file_does(himtok, tmp_path):
    released = tmp_path / "himtok.pth"
    heads = {"encoder_heads": 1, "decoder_heads": 1, "pixel_channels": 32, "pixel_groups": 32}
    torch.save({"model": released_state(tiny_model(**heads))}, released)
    on_the_fly = MaskTokenizer.from_pretrained(released)
    for source, out in ((released, tmp_path / "out"), (tmp_path, tmp_path / "of_folder")):
        status, printed, _ = himtok("convert", source, out)
        assert status == 0 and printed.strip() == str(out)
        assert torch.equal(MaskTokenizer.from_pretrained(out)(random_squares(2)), on_the_fly(random_squares(2)))


def test_convert_rejects_what_is_not_a_weights_file(himtok, tmp_path):
    text = tmp_path / "himtok.pth"
    text.write_text("not weights\nat all\n")
    assert_rejected(himtok("convert", text, tmp_path / "out"), "got a text (")
    assert_rejected(himtok("convert", tmp_path / "none.pth", tmp_path / "out"), "found none")
    assert not (tmp_path / "out").exists()


def save_masks(folder, count=3):
    paths = []
    for i, square in enumerate(random_squares(count, side=20)):
        paths.append(folder / f"{i}.png")
        Image.fromarray(square.numpy().astype(np.uint8) * 255).save(paths[-1])
    return paths


def test_encode_prints_the_text_of_each_mask_in_order(himtok, tokenizer, tmp_path):
    paths = save_masks(tmp_path)
    model = MaskTokenizer.from_pretrained(tokenizer)
    squares = torch.stack([torch.from_numpy(to_square(load_mask(path), 16)) for path in paths])
    expected = model.encode(squares).tolist()
    status, out, _ = himtok("encode", *paths, "--mask_tokenizer", tokenizer)
    assert status == 0 and out.splitlines() == [codes_to_text(codes) for codes in expected]
    _, out, _ = himtok("encode", *paths, "--mask_tokenizer", tokenizer, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["codes"] for row in rows] == expected and [row["mask"] for row in rows] == list(map(str, paths))


def test_encode_tries_the_given_number_of_candidates(himtok, tokenizer, tmp_path):
    paths = save_masks(tmp_path, 2)
    model = MaskTokenizer.from_pretrained(tokenizer)
    squares = torch.from_numpy(np.stack([to_square(path, model.config.image_size) for path in paths]))
    status, out, _ = himtok("encode", *paths, "--mask_tokenizer", tokenizer, "--candidates", 3, "--json")
    codes = [json.loads(line)["codes"] for line in out.splitlines()]
    assert status == 0 and codes == model.encode(squares, candidates=3).tolist() != model.encode(squares).tolist()
    refused = himtok("encode", *paths, "--mask_tokenizer", tokenizer, "--candidates", 0)
    assert_rejected(refused, "candidates=0: expected")


def test_encode_rejects_a_missing_mask_and_a_missing_tokenizer(himtok, tokenizer, tmp_path):
    path = save_masks(tmp_path, 1)[0]
    assert_rejected(himtok("encode", tmp_path / "no.png", "--mask_tokenizer", tokenizer), "no.png' cannot be read")
    assert_rejected(himtok("encode", path, "--mask_tokenizer", tmp_path), "holds neither a mask tokenizer")


def test_without_a_shipped_tokenizer_default_is_rejected(himtok, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_DEFAULT_MASK_TOKENIZER", tmp_path / "none")
    assert_rejected(himtok("encode", save_masks(tmp_path, 1)[0]), "ships no default mask tokenizer")


@pytest.mark.parametrize(
    ("name", "attribute"), [("default", "_DEFAULT_MASK_TOKENIZER"), ("demo", "_DEFAULT_CHECKPOINT")]
)
def test_default_and_demo_are_shipped_tokenizers(name, attribute, himtok, tokenizer, tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    shutil.copytree(tokenizer, checkpoint / "mask_tokenizer")  # its name within a checkpoint
    monkeypatch.setattr(resources, attribute, tokenizer if name == "default" else checkpoint)
    status, out, _ = himtok("encode", save_masks(tmp_path, 1)[0], "--mask_tokenizer", name)
    assert status == 0 and text_to_codes(out)[0].complete
