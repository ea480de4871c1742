"""Tasks about one region: its mask for its box, its box, its class, and its mask alone."""

from __future__ import annotations

from collections.abc import Iterator

from himtok_plugin.data.records import Record

from .making import Maker, Row, task
from .wording import clean


@task("box to its mask")
def box_to_mask(record: Record, make: Maker) -> Iterator[Row]:
    yield from _region_rows(record, make, "box_to_mask")


@task("mask to its box")
def mask_to_box(record: Record, make: Maker) -> Iterator[Row]:
    yield from _region_rows(record, make, "mask_to_box")


def _region_rows(record: Record, make: Maker, pool: str) -> Iterator[Row]:
    for i in record.objects(make.log):
        if make.is_sampled():
            region = record.regions[i]
            with make.skipping_bad_entries(record, f"region {region.id or i}"):
                masks, boxes = [record.rle(i)], [record.box(i)]
                question, answer = make.draw(pool, "questions"), make.draw(pool, "answers")
                asks = pool == "box_to_mask"
                yield make.row(record, region.id, question, answer, masks, boxes, asks_for_masks=asks)


@task("mask to its class")
def name_region(record: Record, make: Maker) -> Iterator[Row]:
    for i in record.objects(make.log):
        region = record.regions[i]
        if region.category and make.is_sampled():
            with make.skipping_bad_entries(record, f"region {region.id or i}"):
                answer = make.draw("name_region", "answers", category=clean(region.category))
                question = make.draw("name_region", "questions")
                yield make.row(record, region.id, question, answer, [record.rle(i)], asks_for_masks=False)


@task("mask alone, for stage 1")
def masks(record: Record, make: Maker) -> Iterator[Row]:
    for i, region in enumerate(record.regions):
        if region.mask is not None and make.is_sampled():
            with make.skipping_bad_entries(record, f"region {region.id or i}"):
                yield {"masks": [record.rle(i)], "source": make.source(record, region.id or str(i))}
