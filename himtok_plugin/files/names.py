"""Names of files as other programs and machines write them, as paths below a folder of this machine."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import parse_qs, unquote, urlsplit

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # a drive such as C: has one letter
_DRIVE = re.compile(r"[a-z]:", re.IGNORECASE)
_MOST_DECODINGS = 2  # of percent signs: some tools encode a name that is encoded already
# Label Studio puts the first characters of a UUID in front of the names of uploaded files.
_UPLOAD_PREFIX = re.compile(r"(?!(19|20)\d{6}-)[0-9a-f]{8}-(?=.)")  # but 20260304-a.jpg begins with a date


def portable_names(name: str) -> list[str]:
    """The paths with slashes that a name may mean, the most literal one first.

    Backslashes become slashes. Of a URL, only the path is kept, or the file in its query
    (`/data/local-files/?d=day1/a.jpg`). Percent-encoded characters are decoded.
    """
    found = [name]
    if _SCHEME.match(name) or "?" in name or "#" in name:
        found += _url_paths(name)
    for form in list(found):
        for _ in range(_MOST_DECODINGS):
            if (decoded := unquote(form)) == form:
                break
            form = decoded
            found.append(form)
    found += [form.replace("\\", "/") for form in found]
    return list(dict.fromkeys(form for form in found if form))


def _url_paths(name: str) -> list[str]:
    try:
        parts = urlsplit(name)
    except ValueError:  # a bad IPv6 address
        return []
    in_query = [value for values in parse_qs(parts.query).values() for value in values if "." in value]
    return [*in_query, parts.path.lstrip("/") if parts.scheme else parts.path]


def name_parts(name: str) -> list[str]:
    """The folders and the last part of a path with slashes, without a drive and without `.` and `..`."""
    return [part for part in _DRIVE.sub("", name, count=1).split("/") if part not in ("", ".", "..")]


def without_upload_prefix(last: str) -> str | None:
    """The name that an uploaded file had before (`0a1b2c3d-a.jpg` is `a.jpg`); None: it has no such prefix."""
    rest = _UPLOAD_PREFIX.sub("", last, count=1)
    return None if rest == last or not _UPLOAD_PREFIX.match(last) else rest


def fold_name(name: str) -> str:
    """A key that is equal for names that differ in case or in how Unicode composes their letters."""
    return unicodedata.normalize("NFC", name).casefold()
