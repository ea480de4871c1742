"""Rows that preprocessing cannot use stay in the dataset of `swift infer`, with the reason in their mask column.

Contract: ms-swift deletes such rows. That is right in training, but each row of an evaluation needs a result. Inside
`keep_failed_rows`, preprocessors keep and number all rows, also those without masks: a row that fails becomes one with
`MaskColumn.error`. The reason travels in the row, so it also arrives from a cache or from another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

from swift.utils import get_logger

from himtok_plugin.evaluation.ground_truth import ASKS_FOR_MASKS

from .mask_column import ROW_DATASET, ROW_NUMBER, MaskColumn, format_row_name, pack_mask_column

logger = get_logger()
KEEPS_ATTRIBUTE = "himtok_keeps_failed_rows"  # of a preprocessor, so that it is pickled with it
CACHE_SUFFIX = "_kept"  # ms-swift names its caches after the input only

_keeping: list[bool] = []

Batch = dict[str, Any]


@contextmanager
def keep_failed_rows() -> Iterator[None]:
    """Make all preprocessors that are called inside the context keep the rows that fail."""
    _keeping.append(True)
    try:
        yield
    finally:
        _keeping.pop()


def set_keeping(preprocessor: Any) -> bool:
    """Set whether a preprocessor keeps the rows that fail; return it."""
    for name in (KEEPS_ATTRIBUTE, "cache_format_version"):
        vars(preprocessor).pop(name, None)
    if _keeping:
        setattr(preprocessor, KEEPS_ATTRIBUTE, True)
        preprocessor.cache_format_version += CACHE_SUFFIX
    return bool(_keeping)


def keeps_failed_rows(preprocessor: Any) -> bool:
    """Return whether `set_keeping` was called inside `keep_failed_rows`."""
    return getattr(preprocessor, KEEPS_ATTRIBUTE, False)


def describe_error(name: str, error: Exception) -> str:
    """Describe in one line why a row failed.

    Args:
        name: of the row, as in `MaskColumn.name`; the line begins with it.
        error: what was raised. The name of its type is left out if the message is one of ours.
    """
    text = " ".join(str(error).split())
    if text.startswith(name):
        return text
    return f"{name}: {text}" if isinstance(error, ValueError) and text else f"{name}: {type(error).__name__}: {text}"


def pack_any_row(row: dict[str, Any], strict: bool) -> dict[str, Any]:
    """Pack the mask columns of a raw row as `pack_mask_column` does; a row without masks is packed as well.

    A row whose columns are bad gets a `MaskColumn` with the error, and keeps its other columns; with `strict` the error
    is raised.
    """
    number, dataset = row.get(ROW_NUMBER), row.get(ROW_DATASET)
    empty = MaskColumn([], None, number, {ASKS_FOR_MASKS: False}, dataset)
    try:
        packed = pack_mask_column(dict(row))
    except (ValueError, TypeError, LookupError) as error:
        if strict:
            raise
        columns = (ROW_NUMBER, ROW_DATASET, "mask", "mask_codes")
        packed = {key: value for key, value in row.items() if key not in columns}
        empty = replace(empty, error=describe_error(format_row_name(dataset, number), error))
        packed["masks"] = None
    if packed.get("masks") is None:
        packed["masks"] = empty.to_json()
    return packed


def preprocess_apart(
    preprocess: Callable[[Batch], Batch], rows: list[dict[str, Any]], filters: bool
) -> list[dict[str, Any]]:
    """Preprocess packed rows; those that fail are kept with their error.

    Args:
        preprocess: ms-swift's strict preprocessing of a batch, which raises an error for a bad row.
        rows: as `pack_any_row` returns them.
        filters: whether `preprocess` may leave rows out by intent. ms-swift's own leaves out those without messages.
    """
    from swift.dataset import RowPreprocessor

    def run(some: list[dict[str, Any]]) -> list[dict[str, Any]]:
        done = RowPreprocessor.batched_to_rows(preprocess(RowPreprocessor.rows_to_batched(deepcopy(some))))
        if len(done) < len(some) and not filters:
            raise ValueError("messages: got none, expected a question")
        return done

    was_disabled, logger.disabled = logger.disabled, True  # it advises `strict=False`, which is set
    try:
        try:
            return run(rows)
        except Exception:  # of any row; which one it was is seen below
            done = []
        for row in rows:
            try:
                done += run([row])
            except Exception as error:
                done.append(_strip_failed_row(row, error))
        return done
    finally:
        logger.disabled = was_disabled


def _strip_failed_row(row: dict[str, Any], error: Exception) -> dict[str, Any]:
    """Keep what a result needs of a row that ms-swift cannot preprocess, in ms-swift's types."""
    column = MaskColumn.parse(row["masks"])
    if column.error is None:
        column = replace(column, error=describe_error(column.name, error))
    messages, images = row.get("messages"), row.get("images")
    kept: dict[str, Any] = {"masks": column.to_json()}
    legal = isinstance(messages, list) and all(
        isinstance(message, dict) and {"role", "content"} <= message.keys() for message in messages
    )
    kept["messages"] = messages if legal and messages else [{"role": "user", "content": str(row.get("query") or "")}]
    images = images if isinstance(images, list) else [images]
    kept["images"] = [image if isinstance(image, dict) else {"bytes": None, "path": image} for image in images]
    if not all(image.keys() == {"bytes", "path"} and isinstance(image["path"], str) for image in kept["images"]):
        kept["images"] = []
    return kept
