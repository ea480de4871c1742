"""Tasks: what is asked about a record and what the answer is, as rows of the dataset format.

Purpose: one function per task turns a record into rows; which ones run is the caller's choice (`--task`).
Contract: a row has `messages`, `images`, `masks` (compressed RLE) and `source`; with boxes also `objects`; for scoring
also `asks_for_masks` (whether a question asks for masks, of which there may be none), `ignore` (RLE of pixels that are
not to count), `category`, `referent` and its `expressions`. What a row cannot be made of is told to the log. Everything
random comes from `Maker.rng`. Does not know formats, files and processes. `making` holds what they share; importing
this package registers all of them.
"""

from . import referring, classes, regions, conversations  # noqa: F401, I001 - in the order in which TASKS lists them
from .making import DEFAULT_SENTENCES, TASKS, Maker, Phrase, TaskOptions, named_share
from .wording import clean

__all__ = [
    "DEFAULT_SENTENCES",
    "TASKS",
    "Maker",
    "Phrase",
    "TaskOptions",
    "clean",
    "named_share",
]
