"""The figures of a conversion: what was written, and what was not, with the reasons."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import BinaryIO


class NoRowsError(ValueError):
    """A conversion that made no samples."""


@dataclass
class LossSummary:
    """What a run has not written.

    Attributes:
        skipped: reason -> number of what cannot be used.
        unused: reason -> number of what is valid and was not written.
        examples: reason -> the first detail of either.
        notes: how the input was read, where that is not obvious.
    """

    skipped: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def count(
        self, skipped: Iterable[tuple[str, str]], unused: Iterable[tuple[str, str]], file: BinaryIO | None
    ) -> None:
        """Count (reason, detail) of what was skipped or is unused, and write each to a file as a line of JSON."""
        for counts, entries in ((self.skipped, skipped), (self.unused, unused)):
            for reason, detail in entries:
                counts[reason] = counts.get(reason, 0) + 1
                self.examples.setdefault(reason, detail)
                if file is not None:
                    line = json.dumps({"reason": reason, "detail": detail}, ensure_ascii=False)
                    file.write(line.encode("utf-8", "backslashreplace") + b"\n")


@dataclass
class PrepareSummary(LossSummary):
    """The figures of a conversion; `unused` are valid images and objects that no sample is about.

    Attributes:
        images: items of the dataset that were read, an image or an entry each.
        rows, masks: how many samples and masks were written.
        empty: samples without a mask, such as questions about what is not in the image.
        tasks: name -> how many samples it made.
        seconds: duration.
    """

    images: int = 0
    rows: int = 0
    masks: int = 0
    empty: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
