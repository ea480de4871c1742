"""Text as other programs write it: UTF-8 with or without a byte order mark, UTF-16, UTF-32.

All commands read text files with these functions, so that they accept the same files. Editors of Windows put a byte
order mark at the beginning, and its shell writes UTF-16.

Contract: imports the standard library only. `read_text` and `decode_text` take a whole text. Files that are read by
byte positions (`skip_mark`) have to be UTF-8, with or without the mark.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import BinaryIO

UTF8_MARK = codecs.BOM_UTF8
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
    (UTF8_MARK, "UTF-8-SIG"),
)
_LONGEST_MARK = 4


class EncodingError(ValueError):
    """Text in an encoding that is not read."""


def find_encoding(head: bytes) -> str:
    """The encoding of a text by its first four bytes: UTF-8, UTF-8-SIG, UTF-16 or UTF-32, or with a suffix -LE or -BE.

    Text without a mark is told by its zero bytes, which ASCII characters have in UTF-16 and UTF-32; other text counts
    as UTF-8.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    zeros = tuple(not byte for byte in head[:_LONGEST_MARK])
    if zeros == (False, True, True, True):
        return "UTF-32-LE"
    if zeros == (True, True, True, False):
        return "UTF-32-BE"
    if zeros[:2] == (False, True):
        return "UTF-16-LE"
    if zeros[:2] == (True, False):
        return "UTF-16-BE"
    return "UTF-8"


def decode_text(data: bytes, name: str) -> str:
    """Decode a text, without its byte order mark.

    Args:
        name: what the text is, such as a file's path, for the error.
    Raises:
        EncodingError: it is neither UTF-8 nor UTF-16 nor UTF-32.
    """
    encoding = find_encoding(data[:_LONGEST_MARK])
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise EncodingError(
            f"{name}: got byte 0x{data[error.start]:02x} at {error.start}, which is not {encoding.removesuffix('-SIG')}"
            f", expected text in UTF-8: save it as UTF-8, for example with {convert_command('LATIN1', name)}"
        ) from error


def read_text(path: Path) -> str:
    """Read a whole text file.

    Raises:
        EncodingError: it is neither UTF-8 nor UTF-16 nor UTF-32.
        OSError: it cannot be read.
    """
    return decode_text(path.read_bytes(), str(path))


def skip_mark(file: BinaryIO, name: str) -> int:
    """Move to the first byte of a text file's content, behind a UTF-8 byte order mark; return its position.

    Args:
        file: open for reading bytes, at its beginning.
        name: of the file, for the error.
    Raises:
        EncodingError: UTF-16 or UTF-32, whose lines and elements cannot be found by bytes.
    """
    head = file.read(_LONGEST_MARK)
    encoding = find_encoding(head)
    if not encoding.startswith("UTF-8"):
        expected = f"UTF-8: convert it with {convert_command(encoding, name)}"
        raise EncodingError(f"{name}: got text in {encoding}, expected {expected}")
    begin = len(UTF8_MARK) if head.startswith(UTF8_MARK) else 0
    file.seek(begin)
    return begin


def strip_mark(line: bytes) -> bytes:
    """A line without a UTF-8 byte order mark: joined files have one in front of each part."""
    return line.removeprefix(UTF8_MARK)


def convert_command(encoding: str, name: str) -> str:
    """The shell command that converts a file to UTF-8, for messages."""
    return f"`iconv -f {encoding} -t UTF-8 {name}`"
