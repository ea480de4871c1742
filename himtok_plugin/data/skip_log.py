"""Annotations that cannot be used: why, how many, and whether a run goes on.

Contract: everything that reads annotations adds what it skips to a `SkipLog`, under one of the reasons here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

# Reasons for skipping an annotation; each is a key in the summary of a run.
MISSING_IMAGE = "image is missing"
AMBIGUOUS = "name fits several files"
UNREADABLE_FILE = "file cannot be read"
MISSING_SPLIT = "split is missing"
UNREADABLE_FOLDER = "folder cannot be read"
WRONG_SIZE = "image has another size than its annotation"
UNREADABLE_IMAGE = "image cannot be read"
TURNED_IMAGE = "annotation does not belong to the upright image (EXIF orientation)"
DEEP_IMAGE = "image has more than 8 bits per channel"
UNKNOWN_CATEGORY = "unknown category"
REPEATED_ID = "id occurs more than once"
UNKNOWN_ID = "id is not in the file"
BAD_MASK = "mask cannot be read"
BAD_POLYGON = "part of an object cannot be drawn; its other parts are kept"
EMPTY_MASK = "mask has no pixels"
CROWD = "crowd: no single object"
NOT_UTF8 = "text is not UTF-8"
BAD_TEXT = "text is empty or holds a placeholder"
NOT_JSON = "is not JSON"
TOO_LARGE = "file is too large"
BAD_ENTRY = "entry lacks a field"
BAD_BOX = "box is not x1 < x2, y1 < y2 within its image"
MASKS_DO_NOT_FIT = "masks do not fit the placeholders of the text"
TOO_MANY = "more objects than max_masks"
# Remarks about what was read in another way than it is written.
BAD_SIZE = "size in the annotations is no size, so the image's own is used"
# Reasons for which no row asks about a valid image or object. These do not stop a strict run.
NO_ANNOTATIONS = "image has no annotations"
NO_ROW = "image has nothing that the tasks ask about"
BOX_ONLY = "annotation is a box without a mask"
INCOMPLETE_CLASS = "its class has an object without a mask in this image (a box, a bad mask, or not annotated)"
INCOMPLETE_IMAGE = "another object of its image has no mask, or is a crowd"
NOT_COUNTABLE = "its class is a crowd or has no single objects in this image"
NO_CLASS = "mask has no class"
NO_EXPRESSION = "no expression refers to it"
LOST_WITH_ROW = "its row was skipped for another reason"
NOT_ASKED = "no task asks about it"


class AnnotationError(ValueError):
    """An annotation that cannot be used.

    Attributes:
        reason: one of the constants above.
        detail: what was found, and where.
        logged: whether it is in a `SkipLog`: several tasks may need the same bad mask.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.logged = reason, detail, False


class StrictError(ValueError):
    """The first skipped annotation of a strict run."""


class SkipLog:
    """The annotations that were skipped; in a strict run the first one is an error.

    Attributes:
        counts: reason -> number of skipped annotations.
        entries: (reason, detail) of each, in order.
        unused: (reason, detail) of each valid image or object that is in no row.
        notes: what the user has to know about how the dataset was read.
        remarks: (what, example) of what was read in another way than it is written.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self.counts: Counter[str] = Counter()
        self.entries: list[tuple[str, str]] = []
        self.unused: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.remarks: list[tuple[str, str]] = []

    def add(self, reason: str, detail: str) -> None:
        """Count a skipped annotation.

        Raises:
            StrictError: in a strict run.
        """
        detail = _printable(detail)
        if self.strict:
            raise StrictError(f"{reason}: {detail}")
        self.counts[reason] += 1
        self.entries.append((reason, detail))

    def add_error(self, error: AnnotationError, where: str) -> None:
        """Count an annotation that raised `error`, unless this error is counted already."""
        if not error.logged:
            error.logged = True
            self.add(error.reason, f"{where}: {error.detail}")

    def add_all(self, reason: str, details: Sequence[str]) -> None:
        for detail in details:
            self.add(reason, detail)

    def remark(self, what: str, example: str) -> None:
        """Count something that was read in another way than it is written; a strict run goes on."""
        self.remarks.append((what, _printable(example)))

    def add_unused(self, reason: str, detail: str) -> None:
        """Count a valid image or object that is in no row; a strict run goes on."""
        self.unused.append((reason, _printable(detail)))


def _printable(text: str) -> str:
    """A text that any terminal and file takes: names may hold half of a character, or a line break."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().splitlines())
