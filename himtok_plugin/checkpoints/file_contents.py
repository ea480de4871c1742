"""What a file of a checkpoint really is, when it is not what its name says.

Downloads end early, `git clone` without git-lfs leaves pointers, a browser saves the page about a file, and a server
answers with an error text under the file's name. `check_weights_file` and `check_json_file` name such files. They read
a file's size, its first bytes and the table of its tensors, so they take milliseconds whatever the size.

Contract: imports the standard library only. Errors are `PATH: got WHAT, expected WHAT: what to do`.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

from himtok_plugin.files.text import decode_text, find_encoding

HEAD = 4096  # bytes that tell what a file is
SHOWN = 80  # characters of a text in a message
LFS_MARK = b"version https://git-lfs.github.com/spec/"
ANNEX_MARK = b"/annex/objects/"
PAGE_STARTS = ("<!doctype html", "<html", "<head", "<body")
TORCH_ZIP = b"PK\x03\x04"
# A pickled long integer that the first versions of `torch.save` begin with, before PyTorch 1.6.
TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LARGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors library
SAFETENSORS, TORCH, JSON = "a safetensors file", "a file of torch.save", "JSON"
WEIGHTS_SUFFIXES = {".safetensors": SAFETENSORS, **dict.fromkeys((".bin", ".pt", ".pth"), TORCH)}
AGAIN = "copy or download it again"
FROM_PAGE = "download the file itself; on Hugging Face, its address has /resolve/ where that of its page has /blob/"
# First bytes of other files that are taken for weights or for JSON.
OTHER_FORMATS = (
    (b"GGUF", "a GGUF file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
)


def check_weights_file(path: Path) -> None:
    """Check that a file of weights is complete, and what its suffix says; without a known one, a file of `torch.save`.

    Files of `torch.save` from before PyTorch 1.6 have no table of contents, so a cut one passes.

    Raises:
        ValueError: the file is missing, empty, cut, or something else; the message says what it is.
    """
    expected = WEIGHTS_SUFFIXES.get(path.suffix.lower(), TORCH)
    _check_is_file(path, expected)
    fault = _find_safetensors_fault(path) if expected == SAFETENSORS else _find_torch_fault(path)
    if fault is not None:
        raise _unusable(path, fault, expected)


def check_json_file(path: Path) -> None:
    """Check that a JSON file that a library reads is not something else, empty or cut.

    Only its beginning and end are read. Libraries read UTF-8 without a byte order mark.

    Raises:
        ValueError: the message says what the file is.
    """
    _check_is_file(path, JSON)
    fault = _find_foreign_content(path, may_be_json=True)
    if fault is None:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            file.seek(max(path.stat().st_size - HEAD, 0))
            tail = file.read().rstrip()
        encoding = find_encoding(head[:4])
        if encoding != "UTF-8":
            name = "UTF-8 with a byte order mark" if encoding == "UTF-8-SIG" else encoding
            fault = f"text in {name}", "save it in UTF-8 without a byte order mark, which libraries expect"
        elif head.lstrip()[:1] in (b"{", b"[") and tail[-1:] not in (b"}", b"]"):
            fault = "JSON that ends in the middle", AGAIN
    if fault is not None:
        raise _unusable(path, fault, JSON)


def read_json(path: Path) -> Any:
    """Read a JSON file; an error says what the file is.

    Raises:
        ValueError: the file is missing, empty, cut, or something else.
        OSError: it cannot be read.
    """
    _check_is_file(path, JSON)
    if (fault := _find_foreign_content(path, may_be_json=True)) is not None:
        raise _unusable(path, fault, JSON)
    text = decode_text(path.read_bytes(), str(path))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        what = "JSON that ends in the middle" if is_cut else "a file that is not JSON"
        raise _unusable(path, (f"{what} ({error})", AGAIN), JSON) from error
    except (ValueError, RecursionError) as error:
        raise _unusable(path, (f"JSON that cannot be read ({error})", AGAIN), JSON) from error


def check_text_file(path: Path) -> None:
    """Check that a text file, such as merges.txt, is not a git-lfs pointer or a web page.

    Raises:
        ValueError: the message says what the file is.
    """
    fault = _find_pointer_or_page(path)
    if fault is not None:
        raise _unusable(path, fault, f"{path.name} of a text tokenizer")


Fault = tuple[str, str]  # (what the file is, what to do)


def _unusable(path: Path, fault: Fault, expected: str) -> ValueError:
    return ValueError(f"{path}: got {fault[0]}, expected {expected}: {fault[1]}")


def _check_is_file(path: Path, expected: str) -> None:
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: got a link to {path.readlink()}, which does not exist, expected {expected}")
    if not path.is_file():
        raise ValueError(f"{path}: got {'a folder' if path.is_dir() else 'no such file'}, expected {expected}")


def _find_pointer_or_page(path: Path) -> Fault | None:
    """What a file is if it stands for another one: a pointer of git-lfs or git-annex, or a web page about it."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if head.startswith(LFS_MARK):
        real = re.search(rb"^size (\d+)", head, re.MULTILINE)
        of = f" to a file of {int(real[1]):,} bytes" if real else ""
        return f"a git-lfs pointer{of}", "run `git lfs pull` in its repository, or download the file itself"
    if ANNEX_MARK in head[:200]:
        return "a git-annex pointer", "run `git annex get` in its repository"
    start = _get_markup(text := _as_text(head) or "")
    if start.startswith(PAGE_STARTS) or (start.startswith("<?xml") and "<html" in start):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        named = f" ({_show(title[1])})" if title and title[1].strip() else ""
        return f"a web page{named}", FROM_PAGE
    return None


def _find_foreign_content(path: Path, may_be_json: bool) -> Fault | None:
    """What a file is if it is neither weights nor, with `may_be_json`, JSON."""
    size = path.stat().st_size
    if not size:
        return "an empty file", AGAIN
    if (fault := _find_pointer_or_page(path)) is not None:
        return fault
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not any(head) and (not may_be_json or size > 4):
        return "nothing but zero bytes, as an interrupted download leaves them", AGAIN
    for mark, name in OTHER_FORMATS:
        if head.startswith(mark):
            return name, "unpack or convert it" if "archive" in name else AGAIN
    text = _as_text(head)
    if text is None:
        return None
    start = _get_markup(text)
    if start.startswith("<"):
        return f"an XML text ({_show(text)})", f"it may be a server's error message: {AGAIN}"
    if start.startswith(("{", "[")):
        if may_be_json:
            return _find_error_reply(text, size)
        return f"a JSON text ({_show(text)})", f"it may be a server's error message: {AGAIN}"
    if may_be_json and start[:1] in ('"', *"-0123456789tfn") and not re.match(r"(not|forbidden|too many)\b", start):
        return None  # another JSON value, or a fault that its parser describes
    return f"a text ({_show(text)})", f"it may be a server's error message: {AGAIN}"


def _find_error_reply(text: str, size: int) -> Fault | None:
    """Recognise a short JSON object that a server sends instead of a file, such as {"error": "not found"}."""
    if size > HEAD:
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    names = {"error", "errors", "message", "detail", "status", "code", "statusCode", "success", "Code", "Message"}
    if isinstance(content, dict) and content and content.keys() <= names | {"request_id", "RequestId", "requestId"}:
        if content.keys() & {"error", "errors", "message", "detail", "Message"}:
            return f"a server's error message ({_show(text)})", AGAIN
    return None


def _find_safetensors_fault(path: Path) -> Fault | None:
    """What is wrong with a safetensors file: 8 bytes with the length of a JSON table, the table, and the tensors."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(9)
        length = struct.unpack("<Q", head[:8])[0] if len(head) >= 8 else 0
        plausible = 2 <= length <= LARGEST_HEADER and head[8:9] == b"{"
        table = file.read(length - 1) if plausible else b""
    if not plausible:
        return (
            _find_foreign_content(path, may_be_json=False)
            or _find_torch_content(path)
            or ((f"{size} bytes, the beginning of a file", AGAIN) if size < 10 else ("another file", AGAIN))
        )
    if len(table) < length - 1:
        return f"a file that is cut off after {size:,} bytes, within the table of its tensors", AGAIN
    try:
        tensors = json.loads(head[8:] + table)
        end = max((entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"), default=0)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "a file whose table of tensors is not readable", AGAIN
    whole = 8 + length + end
    if size < whole:
        return f"a file that is cut off after {size:,} of {whole:,} bytes", AGAIN
    if size > whole:
        return f"a file of {size:,} bytes whose tensors end at byte {whole:,}", AGAIN
    return None


def _find_torch_content(path: Path) -> Fault | None:
    with open(path, "rb") as file:
        head = file.read(len(TORCH_LEGACY))
    is_torch = head.startswith((TORCH_ZIP, TORCH_LEGACY))
    return (TORCH, "give it the suffix .bin, or save it with safetensors") if is_torch else None


def _find_torch_fault(path: Path) -> Fault | None:
    """What is wrong with a file of `torch.save`: a zip archive with data.pkl, or a pickle from before PyTorch 1.6."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head.startswith(TORCH_ZIP):
        if not zipfile.is_zipfile(path):
            return (
                f"a file that is cut off after {path.stat().st_size:,} bytes: its end with the table is missing",
                AGAIN,
            )
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except (zipfile.BadZipFile, OSError) as error:
            return f"a broken archive ({error})", AGAIN
        if not any(name.rpartition("/")[2] in ("data.pkl", "constants.pkl") for name in names):
            return f"a zip archive ({_show(', '.join(names[:3]))})", "unpack it"
        return None
    if head[:1] == b"\x80":  # a pickle
        return None
    if len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= LARGEST_HEADER:
        return SAFETENSORS, "give it the suffix .safetensors"
    return _find_foreign_content(path, may_be_json=False) or ("a file of another kind", AGAIN)


def _get_markup(text: str) -> str:
    """A text in lower case, without a comment at its beginning."""
    start = text.lstrip().lower()
    return start.partition("-->")[2].lstrip() if start.startswith("<!--") else start


def _as_text(head: bytes) -> str | None:
    """The beginning of a text file, or None for binary content."""
    encoding = find_encoding(head[:4])
    if not encoding.startswith("UTF-8") and encoding.endswith(("-LE", "-BE")):
        return None  # zero bytes without a mark are tensors rather than UTF-16
    text = head.decode(encoding, errors="ignore" if encoding.startswith("UTF-8") else "replace")
    if encoding.startswith("UTF-8"):
        lost = len(head) - len(text.encode())
        if lost > 6:  # a mark, and a character that the end of `head` cuts
            return None
    if not text.strip() or any(not (c.isprintable() or c in "\r\n\t\ufeff\f") for c in text[:200]):
        return None
    return text.removeprefix("\ufeff")


def _show(text: str) -> str:
    """A text in one line, shortened for a message."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}…"
