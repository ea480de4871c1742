"""What a file is that its name calls weights or JSON: complete, cut, a pointer, a page, a server's error message."""

import re

import pytest
import torch
from safetensors.torch import save_file

from himtok_plugin.checkpoints.file_contents import check_json_file, check_text_file, check_weights_file, read_json

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 16397461266\n"
PAGE = b"<!DOCTYPE html>\n<html lang=en><head><title>himtok.pth \xc2\xb7 a hub</title></head><body></body></html>"
STRANGERS = {  # content -> what the message says; the same for weights and for JSON
    "pointer": (POINTER, "a git-lfs pointer to a file of 16,397,461,266 bytes, expected .*: run `git lfs pull`"),
    "annex": (b"/annex/objects/SHA256E-s10--4d7a.bin\n", "a git-annex pointer, expected .*: run `git annex get`"),
    "page": (PAGE, r"a web page \(himtok.pth · a hub\), expected .*/resolve/"),
    "page without a doctype": (b"\n <HTML><body>Sign in</body></HTML>", "a web page, "),
    "page after a comment": (b"<!-- saved -->\n<html></html>", "a web page, "),
    "page with a mark": (b"\xef\xbb\xbf" + PAGE, "a web page"),
    "xml error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an XML text .*AccessDenied"),
    "error text": (b"Entry not found", r"a text \(Entry not found\), expected .*: it may be a server's error message"),
    "error object": (b'{"error": "Repository not found"}', "error message.*"),
    "empty": (b"", "an empty file, expected .*: copy or download it again"),
    "zeros": (bytes(5000), "nothing but zero bytes"),
    "archive": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "a gzip archive, expected .*: unpack or convert it"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Suffix -> content of a file with 1000 float32 zeros."""
    folder = tmp_path_factory.mktemp("weights")
    save_file({"a": torch.zeros(1000)}, folder / "a.safetensors")
    torch.save({"a": torch.zeros(1000)}, folder / "a.pth")
    torch.save({"a": torch.zeros(1000)}, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expect_error(check, path, message):
    with pytest.raises(ValueError) as error:
        check(path)
    text = str(error.value)
    assert text.startswith(f"{path}: got ") and re.search(message, text), text
    assert "\n" not in text


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "himtok.pth", "optimizer.pt", "noname"])
@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_under_the_name_of_weights_is_named(tmp_path, name, kind):
    content, message = STRANGERS[kind]
    (tmp_path / name).write_bytes(content)
    expect_error(check_weights_file, tmp_path / name, message)


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("check", [check_json_file, read_json])
def test_a_stranger_under_the_name_of_json_is_named(tmp_path, check, kind):
    content, message = STRANGERS[kind]
    (tmp_path / "config.json").write_bytes(content)
    expect_error(check, tmp_path / "config.json", message)


@pytest.mark.parametrize("kept", [3, 8, 9, 40, 4000, -1])
def test_a_cut_safetensors_file_is_named_at_any_length(tmp_path, weights, kept):
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights["a.safetensors"][:kept])
    expect_error(check_weights_file, path, r"cut off|beginning of a file")


def test_sizes_of_a_cut_safetensors_file_are_given(tmp_path, weights):
    path, whole = tmp_path / "model.safetensors", weights["a.safetensors"]
    path.write_bytes(whole[:-100])
    expect_error(check_weights_file, path, rf"cut off after {len(whole) - 100:,} of {len(whole):,} bytes")
    path.write_bytes(whole + b"more")
    expect_error(check_weights_file, path, rf"{len(whole) + 4:,} bytes whose tensors end at byte {len(whole):,}")


@pytest.mark.parametrize("kept", [4, 100, 4000, -1])
def test_a_cut_file_of_torch_save_is_named(tmp_path, weights, kept):
    path = tmp_path / "himtok.pth"
    path.write_bytes(weights["a.pth"][:kept])
    expect_error(check_weights_file, path, "cut off after")


def test_complete_files_pass_and_the_other_kind_is_named(tmp_path, weights):
    for name, content in (("a.safetensors", "a.safetensors"), ("a.bin", "a.pth"), ("b.pth", "legacy.pth")):
        (tmp_path / name).write_bytes(weights[content])
        check_weights_file(tmp_path / name)
    (tmp_path / "wrong.bin").write_bytes(weights["a.safetensors"])
    expect_error(check_weights_file, tmp_path / "wrong.bin", "a safetensors file, expected a file of torch.save")
    (tmp_path / "wrong.safetensors").write_bytes(weights["a.pth"])
    expect_error(check_weights_file, tmp_path / "wrong.safetensors", "a file of torch.save, expected a safetensors")


def test_a_missing_file_a_folder_and_a_link_to_nothing_are_told_apart(tmp_path):
    expect_error(check_weights_file, tmp_path / "a.bin", "no such file")
    expect_error(check_weights_file, tmp_path, "a folder")
    (tmp_path / "b.bin").symlink_to(tmp_path / "blob")
    expect_error(check_weights_file, tmp_path / "b.bin", "a link to .*blob, which does not exist")


@pytest.mark.parametrize("text", ['{"a": [1, 2', '{"a": "b', "[1, 2"])
def test_cut_json_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    for check in (check_json_file, read_json):
        expect_error(check, path, "JSON that ends in the middle")


def test_json_is_read_in_all_encodings_but_libraries_get_plain_utf_8(tmp_path):
    path = tmp_path / "config.json"
    for encoding, name in (("utf-8-sig", "UTF-8 with a byte order mark"), ("utf-16", "UTF-16")):
        path.write_text('{"a": "é"}', encoding=encoding)
        assert read_json(path) == {"a": "é"}
        expect_error(check_json_file, path, name)
    path.write_text('{"message": {"a": 1}, "weight_map": {}}')
    check_json_file(path)
    path.write_text("{a: 1}")
    expect_error(read_json, path, "a file that is not JSON")


def test_only_pointers_and_pages_are_no_text_files(tmp_path):
    path = tmp_path / "merges.txt"
    for content in (b"#version: 0.2\na b\n", b"", b"<s>\n</s>\n"):
        path.write_bytes(content)
        check_text_file(path)
    for content in (POINTER, PAGE):
        path.write_bytes(content)
        expect_error(check_text_file, path, "git-lfs pointer|web page")
