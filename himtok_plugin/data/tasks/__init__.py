"""Tasks: each is a function that turns a record into samples, questions with their answers. `--task` selects them.

Contract: a sample has `messages`, `images`, `masks` (compressed RLE) and `source`; with boxes also `objects`. For
evaluation it also has `asks_for_masks` (whether the question asks for masks, of which there may be none), `ignore` (RLE
of the pixels that are not scored), `category`, `referent` and its `expressions`. Importing this package registers all
tasks. It knows records, but not formats, files and processes.
"""

from . import referring, classes, regions, conversations  # noqa: F401, I001 - the order of TASKS
from .sample_builder import DEFAULT_SENTENCES, TASKS, SampleBuilder, Phrase, TaskOptions, parse_task_share
from .wording import clean_text

__all__ = [
    "DEFAULT_SENTENCES",
    "TASKS",
    "SampleBuilder",
    "Phrase",
    "TaskOptions",
    "clean_text",
    "parse_task_share",
]
