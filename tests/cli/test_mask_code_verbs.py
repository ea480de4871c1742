"""`himtok init`, `convert`, `encode` and `decode`: output, files and exit status."""

import io
import json
import sys

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


def test_init_overwrites_only_with_force(himtok, tokenizer):
    before = (tokenizer / "config.json").read_text()
    assert_rejected(himtok("init", tokenizer), "is not empty; pass --force")
    assert (tokenizer / "config.json").read_text() == before
    assert himtok("init", tokenizer, "--force")[0] == 0
    assert MaskTokenizer.from_pretrained(tokenizer).config.image_size == 32
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


def test_encode_and_decode_warn_of_an_untrained_tokenizer(himtok, decode, tokenizer, tmp_path):
    path, text = save_masks(tmp_path, 1)[0], codes_to_text([1, 2, 3, 4])
    arguments = ("encode", path, "--mask_tokenizer", tokenizer)
    assert not himtok(*arguments)[2] and not decode(text)[2]
    tiny_model().save_pretrained(tokenizer)
    for status, out, err in (himtok(*arguments), decode(text)):
        assert status == 0 and out and err.count("\n") == 1
        assert err.startswith(f"warning: mask tokenizer {str(tokenizer)!r}: codebook_ready is false")


def test_without_a_shipped_tokenizer_default_is_rejected(himtok, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "_DEFAULT_CHECKPOINT", tmp_path / "none")
    assert_rejected(himtok("encode", save_masks(tmp_path, 1)[0]), "ships no default mask tokenizer")


def test_default_is_the_shipped_tokenizer(himtok, tokenizer, tmp_path, monkeypatch):
    tokenizer.rename(tmp_path / "mask_tokenizer")  # its name within a checkpoint
    monkeypatch.setattr(resources, "_DEFAULT_CHECKPOINT", tmp_path)
    status, out, _ = himtok("encode", save_masks(tmp_path, 1)[0])
    assert status == 0 and text_to_codes(out)[0].complete


@pytest.fixture
def decode(himtok, tokenizer, tmp_path):
    def run(text):
        return himtok("decode", text, "--size", 30, 20, "--output", tmp_path / "out", "--mask_tokenizer", tokenizer)

    return run


def test_decode_writes_a_picture_per_mask_and_prints_its_path(decode, tmp_path):
    status, out, err = decode(f"Here {codes_to_text([1, 2, 3, 4])} and {codes_to_text([5, 6, 7, 8])}.")
    paths = [tmp_path / "out" / f"mask_{i}.png" for i in range(2)]
    assert status == 0 and out.split() == list(map(str, paths)) and not err
    assert all(load_mask(path, size=(30, 20)).shape == (30, 20) for path in paths)


def test_decode_reads_a_file_and_stdin(decode, tmp_path, monkeypatch):
    text = codes_to_text([1, 2, 3, 4])
    (tmp_path / "answer.txt").write_text(text)
    assert decode(tmp_path / "answer.txt")[0] == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert decode("-")[0] == 0


def test_decode_reports_incomplete_masks_and_draws_them_from_their_prefix(decode, tmp_path):
    status, out, err = decode("<|mt_start|><|mt_end|> <|mt_start|><|mt_3|><|mt_99|><|mt_end|> <|mt_start|><|mt_3|>")
    assert status == 0 and out.split() == [str(tmp_path / "out" / f"mask_{i}.png") for i in (1, 2)]
    assert err.count("incomplete") == 3 and "no usable code" in err and "decoded from 1 codes" in err


@pytest.mark.parametrize("text", ["I see no road.", "<|mt_start|><|mt_end|>", ""])
def test_text_without_a_mask_is_a_message_and_status_1(decode, tmp_path, text):
    status, out, err = decode(text)
    assert status == 1 and not out and "no mask in the text" in err and not (tmp_path / "out").exists()


def test_decode_takes_text_longer_than_any_file_name(decode):
    assert decode("word " * 5000 + codes_to_text([1, 2]))[0] == 0


def test_decode_rejects_an_invalid_size(himtok, tokenizer, tmp_path):
    text = codes_to_text([1])
    result = himtok("decode", text, "--size", 0, 5, "--output", tmp_path / "o", "--mask_tokenizer", tokenizer)
    assert_rejected(result, "expected two positive integers (h, w)")
