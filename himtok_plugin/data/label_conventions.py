"""Labels that are no classes: labelme's `__ignore__` and `_background_`, in whatever format they end up.

labelme's lists of labels begin with these two, and its converters (labelme2voc, labelme2coco) carry them on. Contract:
a shape labelled `__ignore__` is part of the record's ignored pixels (`void`), one labelled `_background_` is no object;
neither is asked about, and both are counted as unused.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from himtok_plugin.masks.rle import rle_to_mask

from .class_maps import BACKGROUND_LABEL, IGNORE_LABEL
from .records import Query, Record, RegionMask, region_to_rle
from .skip_log import AnnotationError, SkipLog

NO_CLASSES = frozenset((IGNORE_LABEL, BACKGROUND_LABEL))
NO_CLASS_LABEL = "label is no class (__ignore__, _background_)"


def drop_label_conventions(record: Record, log: SkipLog) -> Record:
    """The record without regions, classes and expressions of labels that are no classes."""
    dropped = {i for i, region in enumerate(record.regions) if region.category in NO_CLASSES}
    named = NO_CLASSES & ((record.present or frozenset()) | record.incomplete_classes | (record.absent or frozenset()))
    if not dropped and not named:
        return record
    void = record.void
    for i in sorted(dropped):
        region = record.regions[i]
        log.add_unused(NO_CLASS_LABEL, f"image {record.image_id}, {region.category}, region {region.id or i}")
        if region.category == IGNORE_LABEL and region.mask is not None:
            void = _unite(void, region.mask, record)
    kept = [i for i in range(len(record.regions)) if i not in dropped]
    numbers = {old: new for new, old in enumerate(kept)}
    return replace(
        record,
        regions=tuple(record.regions[i] for i in kept),
        queries=tuple(query for old in record.queries if (query := _renumber(old, numbers)) is not None),
        present=None if record.present is None else record.present - NO_CLASSES,
        absent=None if record.absent is None else record.absent - NO_CLASSES,
        incomplete_classes=record.incomplete_classes - NO_CLASSES,
        void=void,
    )


def _renumber(query: Query, numbers: dict[int, int]) -> Query | None:
    """A query with the new numbers of its targets; None if all of its targets were dropped."""
    targets = tuple(numbers[i] for i in query.targets if i in numbers)
    return None if query.targets and not targets else replace(query, targets=targets)


def _unite(void: RegionMask, mask: RegionMask, record: Record) -> RegionMask:
    """The union of two masks; what cannot be drawn or has no pixels adds nothing."""
    masks = []
    for each in (void, mask):
        try:
            masks += [] if each is None else [region_to_rle(each, record.size)]
        except AnnotationError:
            continue
    if not masks:
        return None
    united = np.logical_or.reduce([rle_to_mask(rle["counts"], rle["size"]) for rle in masks])
    return united
