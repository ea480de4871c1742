"""Leaves polygons and other shapes that cannot be drawn out of annotated objects, and reports each of them.

Annotation tools leave polygons of one or two points behind where an annotator clicked by mistake, beside the good ones
of the same object. Contract: the object keeps its other polygons; the rule is `masks.polygons.check_polygon`, as for
rows. An object without any good polygon is left as it is: its mask is then a bad one, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from himtok_plugin.masks.polygons import check_polygon, is_list
from himtok_plugin.masks.rle import check_size

from .records import Record, Region
from .skip_log import BAD_POLYGON, AnnotationError, SkipLog

Shape = TypeVar("Shape")
Part = TypeVar("Part")


def drop_bad_polygons(record: Record, log: SkipLog) -> Record:
    """The record without the polygons that cannot be drawn; each is added to the log."""
    regions = tuple(_drop_from_region(region, i, record, log) for i, region in enumerate(record.regions))
    same = all(new is old for new, old in zip(regions, record.regions, strict=True))
    return record if same else replace(record, regions=regions)


def _drop_from_region(region: Region, i: int, record: Record, log: SkipLog) -> Region:
    mask = region.mask
    if not isinstance(mask, dict) or not is_list(mask.get("polygons")):
        return region
    try:
        size = check_size(mask.get("size") or record.size or ())
    except ValueError:
        return region  # reported where the mask is drawn
    good: list[Any] = []
    reasons = []
    for n, polygon in enumerate(mask["polygons"]):
        try:
            check_polygon(polygon, f"polygons[{n}]", size)
        except ValueError as error:
            reasons.append(str(error))
        else:
            good.append(polygon)
    if not good or not reasons:
        return region
    log.add_all(BAD_POLYGON, [f"image {record.image_id}, region {region.id or i}: {reason}" for reason in reasons])
    return replace(region, mask={**mask, "polygons": good})


def convert_good_parts(
    convert: Callable[[Shape], Part], shapes: Sequence[Shape], log: SkipLog, where: str
) -> list[Part]:
    """Convert the shapes of one object; those that cannot be converted are added to the log.

    Raises:
        AnnotationError: no shape can be converted; the error of the first one.
    """
    parts, errors = [], []
    for shape in shapes:
        try:
            parts.append(convert(shape))
        except AnnotationError as error:
            errors.append(error)
    if errors and not parts:
        raise errors[0]
    log.add_all(BAD_POLYGON, [f"{where}: {error.detail}" for error in errors])
    return parts
