"""Tasks about classes: the masks of one, of all, of those of a list that are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pycocotools import mask as coco

from himtok_plugin.data.records import BAD_TEXT, BadEntry, Record, union
from himtok_plugin.mask_text import MASK_PLACEHOLDER

from .making import (
    Maker,
    Row,
    by_class,
    check_count,
    ignored,
    is_absent,
    mask_answer,
    task,
    uncountable_classes,
)
from .wording import clean

ABSENT_CLASSES = 3  # asked for beside those that are there, at most


@task("class to one mask of all of it, crowds included")
def segment_class(record: Record, make: Maker) -> Iterator[Row]:
    with_mask = [i for i, region in enumerate(record.regions) if region.mask is not None]
    for name, regions in by_class(record, with_mask).items():
        if name in record.incomplete_classes:
            continue  # its mask would miss what is not annotated
        if make.is_sampled():
            with make.skipping_bad_entries(record, name):
                # A class whose mask misses one of its objects would be wrong, so one bad mask costs the row.
                mask = union([record.rle(i) for i in regions], record.size)
                question = make.draw("segment_class", "questions", category=clean(name))
                answer = make.draw("segment_class", "one")
                yield make.row(record, name, question, answer, [mask], category=name, **ignored(record.void, record))


@task("class to a mask per object")
def segment_instances(record: Record, make: Maker) -> Iterator[Row]:
    uncountable = uncountable_classes(record)
    for name, regions in by_class(record, record.objects(make.log)).items():
        if name in uncountable:
            continue  # as `objects` or the reader has told
        if make.is_sampled():
            with make.skipping_bad_entries(record, name):
                check_count(regions, make.options)
                masks = [record.rle(i) for i in regions]
                question = make.draw("segment_instances", "questions", category=clean(name))
                answer = mask_answer(make, "segment_instances", len(masks))
                yield make.row(record, name, question, answer, masks, category=name)


@task("all objects, each as a line of label and mask")
def label_objects(record: Record, make: Maker) -> Iterator[Row]:
    objects = [i for i in record.objects(make.log) if record.regions[i].category]
    if uncountable_classes(record):
        return  # they are not all, be it that one is of a class of which there is no mask at all
    if objects and make.is_sampled():
        with make.skipping_bad_entries(record, "all objects"):
            check_count(objects, make.options)
            masks = {i: record.rle(i) for i in objects}
            objects.sort(key=lambda i: (-int(coco.area(masks[i])), i))
            answer = _lines([record.regions[i].category for i in objects])
            question = make.draw("label_objects", "questions")
            yield make.row(record, "", question, answer, [masks[i] for i in objects])


@task("which of some classes are there, each as a line of label and mask", needs_negatives=True)
def open_vocabulary(record: Record, make: Maker) -> Iterator[Row]:
    if record.present is None or not make.is_sampled():
        return
    with make.skipping_bad_entries(record, "open vocabulary"):
        with_mask = [i for i, region in enumerate(record.regions) if region.mask is not None]
        there = by_class(record, with_mask)
        there = {name: regions for name, regions in there.items() if name not in record.incomplete_classes}
        names = {phrase.text for phrase in make.negatives if phrase.is_class and is_absent(phrase, record)}
        names = sorted(names - there.keys())
        names = make.rng.sample(names, min(ABSENT_CLASSES, len(names))) + list(there)
        if not names:
            return
        make.rng.shuffle(names)
        found = [name for name in names if name in there]
        check_count(found, make.options)
        masks = [union([record.rle(i) for i in there[name]], record.size) for name in found]
        question = make.draw("open_vocabulary", "questions", names=", ".join(map(clean, names)))
        answer = _lines(found) if found else make.draw("open_vocabulary", "none")
        yield make.row(record, "", question, answer, masks)


def _lines(labels: Sequence[str]) -> str:
    """`label: <mask>`, one per line: what `--mask_labels` lets a model answer."""
    for label in labels:
        if any(character in label for character in ":<\n\r"):
            raise BadEntry(BAD_TEXT, f"got {label!r:.120} for a label")
    return "\n".join(f"{clean(label)}: {MASK_PLACEHOLDER}" for label in labels)
