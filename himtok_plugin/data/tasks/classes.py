"""Tasks about classes: the masks of one class, of all objects, of those classes of a list that are present."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pycocotools import mask as coco

from himtok_plugin.data.records import Record, union_rles
from himtok_plugin.data.skip_log import BAD_TEXT, AnnotationError
from himtok_plugin.mask_text import MASK_PLACEHOLDER

from .sample_builder import (
    CLASSES,
    OBJECTS_OF_CLASSES,
    Sample,
    SampleBuilder,
    check_mask_count,
    draw_mask_answer,
    drop_strays,
    group_by_class,
    ignore_column,
    is_absent,
    register_task,
    uncountable_classes,
)
from .wording import clean_text

ABSENT_CLASSES = 3  # the most absent classes in a question of `open_vocabulary`


@register_task("class to one mask of everything of that class, crowds included", CLASSES)
def segment_class(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    with_mask = [i for i, region in enumerate(record.regions) if region.mask is not None]
    for name, regions in group_by_class(record, with_mask).items():
        if name in record.incomplete_classes:
            continue  # its mask would miss objects that are not annotated
        if builder.is_sampled():
            if not (regions := drop_strays(record, regions, builder)):
                continue
            with builder.skip_on_error(record, name, regions):
                # One bad mask skips the sample: a class mask without one of its objects would be wrong.
                mask = union_rles([record.rle(i) for i in regions])
                question = builder.draw("segment_class", "questions", category=clean_text(name))
                answer = builder.draw("segment_class", "one")
                yield builder.build(
                    record, name, question, answer, [mask], category=name, **ignore_column(record.void, record)
                )


@register_task("class to a mask per object", OBJECTS_OF_CLASSES)
def segment_instances(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    uncountable = uncountable_classes(record)
    for name, regions in group_by_class(record, record.objects(builder.log)).items():
        if name in uncountable:
            continue  # already logged, by `objects` or by the reader
        if builder.is_sampled():
            if not (regions := drop_strays(record, regions, builder)):
                continue
            with builder.skip_on_error(record, name, regions):
                check_mask_count(regions, builder.options)
                masks = [record.rle(i) for i in regions]
                question = builder.draw("segment_instances", "questions", category=clean_text(name))
                answer = draw_mask_answer(builder, "segment_instances", len(masks))
                yield builder.build(record, name, question, answer, masks, category=name)


@register_task("all objects, each as a line of label and mask", OBJECTS_OF_CLASSES)
def label_objects(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    objects = [i for i in record.objects(builder.log) if record.regions[i].category]
    if uncountable_classes(record):
        return  # these are not all objects of the image
    if objects and builder.is_sampled() and (objects := drop_strays(record, objects, builder)):
        with builder.skip_on_error(record, "all objects", objects):
            check_mask_count(objects, builder.options)
            masks = {i: record.rle(i) for i in objects}
            objects.sort(key=lambda i: (-int(coco.area(masks[i])), i))
            answer = _label_lines([record.regions[i].category or "" for i in objects])
            question = builder.draw("label_objects", "questions")
            yield builder.build(record, "", question, answer, [masks[i] for i in objects])


@register_task(
    "which of some classes are in the image, each as a line of label and mask", CLASSES, needs_negatives=True
)
def open_vocabulary(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    if record.present is None or not builder.is_sampled():
        return
    with_mask = [i for i, region in enumerate(record.regions) if region.mask is not None]
    present = group_by_class(record, with_mask)
    present = {
        name: objects
        for name, regions in present.items()
        if name not in record.incomplete_classes and (objects := drop_strays(record, regions, builder))
    }
    with builder.skip_on_error(record, "open vocabulary", [i for regions in present.values() for i in regions]):
        absent = {phrase.text for phrase in builder.negatives if phrase.is_class and is_absent(phrase, record)}
        absent -= present.keys()
        names = builder.rng.sample(sorted(absent), min(ABSENT_CLASSES, len(absent))) + list(present)
        if not names:
            return
        builder.rng.shuffle(names)
        found = [name for name in names if name in present]
        check_mask_count(found, builder.options)
        masks = [union_rles([record.rle(i) for i in present[name]]) for name in found]
        question = builder.draw("open_vocabulary", "questions", names=", ".join(map(clean_text, names)))
        answer = _label_lines(found) if found else builder.draw("open_vocabulary", "none")
        yield builder.build(record, "", question, answer, masks)


def _label_lines(labels: Sequence[str]) -> str:
    """`label: <mask>`, one per line: the form of answers that `--mask_labels` reads."""
    for label in labels:
        if any(character in label for character in ":<\n\r"):
            raise AnnotationError(BAD_TEXT, f"got {label!r:.120} for a label")
    return "\n".join(f"{clean_text(label)}: {MASK_PLACEHOLDER}" for label in labels)
