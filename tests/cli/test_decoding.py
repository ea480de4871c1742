"""`himtok decode`: text from anywhere, sizes and overlays, files that are not there."""

import html
import io
import json
import sys
from urllib.parse import quote

import numpy as np
import pytest
from PIL import ExifTags, Image
from test_mask_code_verbs import assert_rejected, save_masks
from tiny_models import tiny_model

from himtok_plugin.mask_text import codes_to_text
from himtok_plugin.masks import load_mask


@pytest.fixture
def tokenizer(tmp_path):
    """Folder of a tiny tokenizer, said to be trained: 4 tokens of 12 codes."""
    tiny_model(codebook_ready=True).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def decode(himtok, tokenizer, tmp_path):
    def run(text, *options):
        options = options or ("--size", 30, 20)
        return himtok("decode", text, *options, "--output", tmp_path / "out", "--mask_tokenizer", tokenizer)

    return run


def test_encode_and_decode_warn_of_an_untrained_tokenizer(himtok, decode, tokenizer, tmp_path):
    path, text = save_masks(tmp_path, 1)[0], codes_to_text([1, 2, 3, 4])
    arguments = ("encode", path, "--mask_tokenizer", tokenizer)
    assert not himtok(*arguments)[2] and not decode(text)[2]
    tiny_model().save_pretrained(tokenizer)
    for status, out, err in (himtok(*arguments), decode(text)):
        assert status == 0 and out and err.count("\n") == 1
        assert err.startswith(f"warning: mask tokenizer {str(tokenizer)!r}: codebook_ready is false")


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


MASKS = [codes_to_text([1, 2, 3, 4]), codes_to_text([5, 6, 7, 8])]
ANSWER = f"Here {MASKS[0]} and {MASKS[1]}."


def get_sizes(folder):
    return [Image.open(path).size[::-1] for path in sorted(folder.glob("mask_*.png"))]


@pytest.mark.parametrize(
    "name", ["answre.txt", "answer", "masks/answer.json", "my answer.txt", "/no/such/file", "mt_7.txt"]
)
def test_a_missing_file_is_a_missing_file(decode, tmp_path, name):
    assert_rejected(decode(name), f"{name}: no such file")
    assert_rejected(decode(tmp_path), f"{tmp_path}: got a folder, expected a file")


def escape_as_json(text):
    return json.dumps(text).replace("<", "\\u003c").replace(">", "\\u003e")


ESCAPED = {
    "JSON": escape_as_json(ANSWER),
    "JSON without quotes": escape_as_json(ANSWER)[1:-1],
    "JSON with all characters": ANSWER.replace("<", "\\u003C").replace("|", "\\u007c").replace(">", "\\u003E"),
    "JSON in JSON": json.dumps(escape_as_json(ANSWER)[1:-1]),
    "HTML": html.escape(ANSWER),
    "HTML by numbers": ANSWER.replace("<", "&#60;").replace("|", "&#x7C;").replace(">", "&#62;"),
    "HTML twice": html.escape(html.escape(ANSWER)),
    "URL": quote(ANSWER),
    "Markdown": ANSWER.replace("<", "\\<").replace("|", "\\|").replace("_", "\\_").replace(">", "\\>"),
}


@pytest.mark.parametrize("kind", ESCAPED)
@pytest.mark.parametrize("in_file", [False, True])
def test_escaped_text_is_read_as_the_text_itself(decode, tmp_path, kind, in_file):
    assert decode(ANSWER)[0] == 0
    expected = [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())]
    text = ESCAPED[kind]
    if in_file:
        (tmp_path / "copied").write_text(text)
        text = tmp_path / "copied"
    status, out, err = decode(text)
    assert status == 0 and len(out.split()) == 2, err
    assert [path.read_bytes() for path in sorted((tmp_path / "out").iterdir())] == expected
    if kind not in ("JSON",):  # json.loads alone reads it
        assert f"the text is escaped as in {kind.split()[0]}" in err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_file_of_another_encoding_is_read(decode, tmp_path, encoding):
    (tmp_path / "answer.txt").write_text(f"Größe: {ANSWER}", encoding=encoding)
    assert decode(tmp_path / "answer.txt")[0] == 0


def test_a_file_that_is_no_text_is_named(decode, tmp_path):
    (tmp_path / "answer.txt").write_bytes(b"Gr\xf6\xdfe " + ANSWER.encode())
    assert_rejected(decode(tmp_path / "answer.txt"), "answer.txt: got byte 0xf6")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "&lt;|mt_0007|&gt;",
            "got <|mt_0007|>, whose number begins with 0, expected <|mt_7|>",
        ),
        ("the codes mt_start mt_7 mt_end", "with their brackets"),
        ("< | mt_start | > < | mt_7 | >", "with their brackets"),
    ],
)
def test_what_is_almost_a_mask_is_named(decode, text, named):
    status, out, err = decode(text)
    assert status == 1 and not out and "no mask in the text" in err and named in err


def test_sizes_are_given_for_each_mask(decode, tmp_path):
    assert decode(ANSWER, "--size", 30, 20, "--size", 12, 18)[0] == 0
    assert get_sizes(tmp_path / "out") == [(30, 20), (12, 18)]
    assert_rejected(decode(ANSWER, *["--size", 3, 4] * 3), "--size: got 3, expected one, or one for each of the 2")
    assert_rejected(decode(ANSWER, "--overlay"), "overlay: got no image")
    assert_rejected(decode(ANSWER, "--mask_tokenizer", "default"), "expected --size H W or --image FILE")


def save_image(path, size, orientation=None):
    image = Image.new("RGB", size[::-1], (40, 80, 120))
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif)
    return path


def test_sizes_come_from_images_as_viewers_show_them(decode, tmp_path):
    wide = save_image(tmp_path / "wide.jpg", (20, 30))
    turned = save_image(tmp_path / "turned.jpg", (20, 30), orientation=6)
    assert decode(ANSWER, "--image", wide)[0] == 0
    assert get_sizes(tmp_path / "out") == [(20, 30)] * 2
    assert decode(ANSWER, "--image", wide, "--image", turned)[0] == 0
    assert get_sizes(tmp_path / "out") == [(20, 30), (30, 20)]
    assert_rejected(decode(ANSWER, "--image", wide, "--size", 1, 2), "got --size and --image, expected one of them")


def test_an_overlay_draws_each_mask_in_its_own_colour(decode, tmp_path):
    image = save_image(tmp_path / "photo.png", (40, 60), orientation=6)
    status, out, err = decode(ANSWER, "--image", image, "--overlay")
    assert status == 0 and out.split()[-1] == str(tmp_path / "out" / "overlay_0.png"), err
    drawn = Image.open(tmp_path / "out" / "overlay_0.png")
    assert drawn.size == (40, 60)
    masks = [load_mask(path, size=(60, 40)) for path in sorted((tmp_path / "out").glob("mask_*.png"))]
    changed = (np.asarray(drawn) != (40, 80, 120)).any(-1)
    assert np.array_equal(changed, masks[0] | masks[1])


def write_results(folder):
    save_image(folder / "a.png", (24, 32))
    masks = [{"size": [30, 20], "counts": "1"}, {"size": [12, 18], "counts": "1"}]
    messages = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": ANSWER}]
    rows = [{"response": ANSWER, "masks": masks, "messages": messages}, {"messages": messages, "images": ["a.png"]}]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "results.jsonl"


def test_rows_of_results_have_sizes_and_images(decode, tmp_path):
    results = write_results(tmp_path)
    status, out, err = decode(results, "--mask_tokenizer", tmp_path / "tokenizer")
    assert status == 0 and len(out.split()) == 4, err
    assert get_sizes(tmp_path / "out") == [(30, 20), (12, 18), (24, 32), (24, 32)]
    assert decode(results)[0] == 0
    assert get_sizes(tmp_path / "out") == [(30, 20)] * 4
    row = results.read_text().splitlines()[1]
    assert_rejected(decode(row, "--overlay"), "images: got 'a.png', which is not there")
    results.write_text(row)
    assert decode(results, "--overlay")[0] == 0
    assert (tmp_path / "out" / "overlay_0.png").is_file()


def test_a_servers_response_is_read(decode, tmp_path):
    response = {"choices": [{"message": {"content": MASKS[0]}}, {"message": {"content": MASKS[1]}}]}
    assert decode(json.dumps(response))[0] == 0
    assert len(get_sizes(tmp_path / "out")) == 2
    for choice in response["choices"]:
        choice["message"]["segments"] = [{"size": [9, 7], "counts": "", "label": None}]
    (tmp_path / "response.json").write_text(json.dumps(response))
    assert decode(tmp_path / "response.json", "--mask_tokenizer", tmp_path / "tokenizer")[0] == 0
    assert get_sizes(tmp_path / "out") == [(9, 7)] * 2
