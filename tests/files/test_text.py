"""Text files of other programs are read, or refused in one sentence that names the file and its encoding."""

import codecs
import io

import pytest

from himtok_plugin.files.text import EncodingError, decode_text, read_text, skip_mark, strip_mark

TEXT = '{"name": "Größe 橋"}'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_unicode_text_is_read_in_any_encoding_with_and_without_a_mark(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path) == TEXT


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE])
def test_either_byte_order_is_read_by_its_mark(mark):
    encoding = "utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-16-be"
    assert decode_text(mark + TEXT.encode(encoding), "a") == TEXT


def test_an_empty_text_stays_empty():
    assert decode_text(b"", "a") == "" == decode_text(codecs.BOM_UTF8, "a")


def test_other_encodings_are_refused_with_the_file_and_what_to_do(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("Größe".encode("latin-1"))
    with pytest.raises(EncodingError, match=r"classes\.txt: got byte 0xf6 at 2, which is not UTF-8.*iconv -f LATIN1"):
        read_text(path)
    path.write_bytes(codecs.BOM_UTF16_LE + b"a")  # cut within a character
    with pytest.raises(EncodingError, match=r"classes\.txt: got byte .* which is not UTF-16"):
        read_text(path)


@pytest.mark.parametrize(("mark", "begin"), [(b"", 0), (codecs.BOM_UTF8, 3)])
def test_files_read_by_bytes_begin_behind_the_mark(mark, begin):
    file = io.BytesIO(mark + TEXT.encode())
    assert skip_mark(file, "a") == begin == file.tell()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32-be"])
def test_files_read_by_bytes_have_to_be_utf8(encoding):
    with pytest.raises(EncodingError, match=r"rows\.jsonl: got text in UTF-\d\d.*, expected UTF-8: convert it with"):
        skip_mark(io.BytesIO(TEXT.encode(encoding)), "rows.jsonl")


def test_a_mark_in_front_of_a_line_is_removed():
    assert strip_mark(codecs.BOM_UTF8 + b"{}\n") == b"{}\n" == strip_mark(b"{}\n")
