"""The words of a training's questions, from the dataset that ms-swift has loaded and not yet encoded.

Contract: `find_training_words` reads the dataset's column of messages in Arrow, where equal messages are found without
Python; it parses each different message once and no images or masks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from swift.utils import get_logger

from himtok_plugin.words.known_words import KnownWords, read_content

logger = get_logger()
MESSAGES = "messages"
_HIDING_OPTIONS = ("streaming", "cached_dataset", "chord_sft_dataset")  # rows are read later, or are encoded already
_BATCH = 10_000  # rows


def can_know_training_words(args: Any) -> bool:
    """Whether all questions of a training are known before it; if not, warn what follows.

    Args:
        args: ms-swift's arguments of the training.
    """
    hidden = [f"--{name}" for name in _HIDING_OPTIONS if getattr(args, name, None)]
    if hidden:
        logger.warning(
            f"With {' and '.join(hidden)}, the words of the training questions are not known: the checkpoints of this "
            "run have no known_words.json, so their answers do not name words that the training never had."
        )
    return not hidden


def find_training_words(dataset: Dataset | None, every_role: bool) -> KnownWords:
    """Collect the words of training questions.

    Args:
        dataset: rows of messages, before they are encoded; None: no rows.
        every_role: whether the texts of all roles count, not only those of users.
    """
    return KnownWords.of_texts([] if dataset is None else _list_texts(dataset, every_role))


def _list_texts(dataset: Dataset, every_role: bool) -> Iterator[str]:
    seen: set[str] = set()
    for table in dataset.select_columns([MESSAGES]).with_format("arrow").iter(_BATCH):
        for message in _list_messages(table[MESSAGES], seen):
            if every_role or message.get("role") == "user":
                yield read_content(message)


def _list_messages(column: pa.ChunkedArray, seen: set[str]) -> Iterator[Mapping[str, Any]]:
    """Yield messages, those in JSON without those in `seen`, to which they are added."""
    messages = pc.list_flatten(column).combine_chunks()
    if isinstance(messages, pa.ChunkedArray):  # of one chunk, with some releases of pyarrow
        messages = pa.concat_arrays(messages.chunks)
    if isinstance(messages, pa.ExtensionArray):  # JSON, as ms-swift writes messages
        messages = messages.storage
    if not pa.types.is_string(messages.type) and not pa.types.is_large_string(messages.type):
        yield from filter(None, messages.to_pylist())
        return
    for text in pc.unique(messages).to_pylist():
        if text is not None and text not in seen:
            seen.add(text)
            yield json.loads(text)
