"""Tasks about one region: box to mask, mask to box, mask to class, and the mask alone."""

from __future__ import annotations

from collections.abc import Iterator

from himtok_plugin.data.records import Record

from .sample_builder import MASKS, OBJECTS, OBJECTS_OF_CLASSES, Sample, SampleBuilder, register_task
from .wording import clean_text


@register_task("box to its mask", OBJECTS)
def box_to_mask(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    yield from _region_samples(record, builder, "box_to_mask")


@register_task("mask to its box", OBJECTS)
def mask_to_box(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    yield from _region_samples(record, builder, "mask_to_box")


def _region_samples(record: Record, builder: SampleBuilder, pool: str) -> Iterator[Sample]:
    for i in record.objects(builder.log):
        if builder.is_sampled():
            region = record.regions[i]
            with builder.skip_on_error(record, f"region {region.id or i}", [i]):
                masks, boxes = [record.rle(i)], [record.box(i)]
                question, answer = builder.draw(pool, "questions"), builder.draw(pool, "answers")
                asks = pool == "box_to_mask"
                yield builder.build(record, region.id, question, answer, masks, boxes, asks_for_masks=asks)


@register_task("mask to its class", OBJECTS_OF_CLASSES)
def name_region(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    for i in record.objects(builder.log):
        region = record.regions[i]
        if region.category and builder.is_sampled():
            with builder.skip_on_error(record, f"region {region.id or i}", [i]):
                answer = builder.draw("name_region", "answers", category=clean_text(region.category))
                question = builder.draw("name_region", "questions")
                yield builder.build(record, region.id, question, answer, [record.rle(i)], asks_for_masks=False)


@register_task("mask alone, for stage 1", MASKS)
def masks(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    for i, region in enumerate(record.regions):
        if region.mask is not None and builder.is_sampled():
            with builder.skip_on_error(record, f"region {region.id or i}", [i]):
                yield {"masks": [record.rle(i)], "source": builder.source(record, region.id or str(i))}
