"""Looks for masks in a training dataset, so that a run whose mask loss would learn nothing fails early."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from himtok_plugin.swift_integration.samples.mask_batch import SAMPLE_MASKS_KEY
from himtok_plugin.swift_integration.samples.mask_column import MaskColumn

BATCH_SIZE = 100  # rows that are read at once; usually the first ones have masks


def may_have_masks(dataset: Any) -> bool:
    """Return False if no row of a dataset has a mask; True for streams, which cannot be searched."""
    while hasattr(dataset, "dataset"):  # ms-swift's lazy and packing wrappers
        dataset = dataset.dataset
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        return True
    mask_columns = [name for name in ("masks", SAMPLE_MASKS_KEY) if name in columns]
    if not mask_columns or not isinstance(dataset, Dataset):
        return bool(mask_columns)
    batches: Any = dataset.select_columns(mask_columns).iter(batch_size=BATCH_SIZE)
    return any(_has_mask(value) for batch in batches for name in mask_columns for value in batch[name])


def _has_mask(value: Any) -> bool:
    """Return whether a row's value has masks: packed (mask_column.py) or encoded (mask_batch.py)."""
    if isinstance(value, dict):
        return any(value["starts"])
    if isinstance(value, list):
        return any(map(_has_mask, value))
    return value is not None and bool(MaskColumn.parse(value).masks)
