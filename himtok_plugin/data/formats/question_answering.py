"""Questions and answers about images: POPE, VQAv2, and questions about masks.

Contract: one record per question, with one dialogue.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.annotation_values import normal_id
from himtok_plugin.data.byte_ranges import Range, RangeIndex, find_repeated, id_to_int, iter_elements, read_json_at
from himtok_plugin.data.records import Dialogue, Record, Region
from himtok_plugin.data.skip_log import BAD_ENTRY, BAD_MASK, REPEATED_ID, UNKNOWN_ID, AnnotationError, SkipLog
from himtok_plugin.files.finder import FileFinder
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, MASK_PLACEHOLDER
from himtok_plugin.validation import abridged

from .coco_index import segmentation_mask
from .entries import EntryFiles, find_entry_files, first_field
from .image_finder import ImageFinder, find_mask
from .reader import IMAGE_SUFFIXES, Reader, Source
from .refer import IMAGE_FOLDERS

ANSWERS = {"yes": "Yes", "no": "No"}


class PopeReader(Reader):
    """`coco_pope_<split>.json`, which is JSON lines; its images are from COCO's val2014."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        names = (f"*pope_{source.split}.json", f"*pope_{source.split}.jsonl", f"coco/*pope_{source.split}.json")
        files = find_entry_files(source.root, source.annotations, names, source.split, one_dataset=True)
        self.files = EntryFiles(files, fields=("label",))
        self.finder = ImageFinder(source, ("val2014", "images/val2014", "coco/val2014", "images", "", "../val2014"))

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        return self.files.list_items(log)

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        for name, entry in self.files.load(item):
            try:
                label = str(first_field(entry, "label")).strip().lower()
                if label not in ANSWERS:
                    raise AnnotationError(BAD_ENTRY, f"label is {label!r:.80}: expected yes or no")
                path, size = self.finder.find(first_field(entry, "image"))
                id = str(entry.get("question_id", name))
                dialogue = Dialogue(_text_field(entry, "text", "question"), ANSWERS[label], pool="answer_yes_no", id=id)
                yield Record(path, size, Path(path).stem, dialogues=(dialogue,))
            except AnnotationError as error:
                log.add(error.reason, f"{name}: {error.detail}")


class VqaReader(Reader):
    """`v2_OpenEnded_mscoco_<split>2014_questions.json` and `v2_mscoco_<split>2014_annotations.json`.

    The answer is the most frequent one of the ten (`multiple_choice_answer`).
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        split = source.split
        questions = f"v2_OpenEnded_mscoco_{split}2014_questions.json"
        answers = f"v2_mscoco_{split}2014_annotations.json"
        folder = source.annotations or source.root
        self.questions = find_entry_files(folder, None, (questions, f"*/{questions}"))[0]
        self.answers = find_entry_files(folder, None, (answers, f"*/{answers}"))[0]
        below = (f"{split}2014", f"images/{split}2014", f"coco/{split}2014", "images", "", f"../{split}2014")
        self.finder = ImageFinder(source, below)

    def list_items(self, log: SkipLog) -> Sequence[tuple[Range, Range]]:
        questions = _index_by_question(self.questions, "questions", log)
        answers = _index_by_question(self.answers, "annotations", log)
        items = []
        for i, number in enumerate(questions.groups().tolist()):
            if own := answers.in_group(number):
                items.append((questions.range(i), own[0]))
            else:
                log.add(UNKNOWN_ID, f"{self.answers.name}: question {number} has no answer")
        return items

    def read_records(self, item: tuple[Range, Range], log: SkipLog) -> Iterator[Record]:
        question, answer = read_json_at(self.questions, item[0]), read_json_at(self.answers, item[1])
        name = f"question {question.get('question_id')}"
        try:
            image = normal_id(first_field(question, "image_id"))
            if not isinstance(image, int):
                raise AnnotationError(BAD_ENTRY, f"image_id is {abridged(question.get('image_id'))}: expected a number")
            path, size = self.finder.find(f"COCO_{self.source.split}2014_{image:012}.jpg")
            text = _text_field(answer, "multiple_choice_answer")
            dialogue = Dialogue(
                _text_field(question, "question"), text, pool="answer_shortly", id=str(question["question_id"])
            )
        except AnnotationError as error:
            raise AnnotationError(error.reason, f"{name}: {error.detail}") from error
        yield Record(path, size, str(image), dialogues=(dialogue,))


def _index_by_question(path: Path, key: str, log: SkipLog) -> RangeIndex:
    """The ranges of the elements of a top-level list, grouped by `question_id`."""
    ranges, ids = RangeIndex(), array("q")
    for found, begin, length, value in iter_elements(path):
        if found != key or not length:
            continue
        if not isinstance(value, dict) or normal_id(value.get("question_id")) is None:
            log.add(BAD_ENTRY, f"{path.name}: {abridged(value)} has no question_id")
            continue
        ranges.add(value["question_id"], begin, length)
        ids.append(id_to_int(value["question_id"]))
    again = find_repeated(ids)
    log.add_all(REPEATED_ID, [f"{path.name}: question {ids[i]}" for i in again])
    ranges.drop(again)
    return ranges


class MaskPerceptionReader(Reader):
    """Entries with `image`, `question`, `answer`, optional `options`, and `mask` or `masks`, one for each `<mask>`.

    A single mask without a `<mask>` is put in front of the question. Masks may also be mask text, as in the authors'
    own files; such entries have no `mask`.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        split = None if source.split == "all" else source.split
        files = find_entry_files(source.root, source.annotations, ("*.jsonl", "*.json", "*.parquet"), split)
        self.files = EntryFiles(files, fields=("question", "text", "answer"))
        self.finder = ImageFinder(source, ("images", "", *IMAGE_FOLDERS))
        self.masks = FileFinder([source.root, source.root / "masks"], IMAGE_SUFFIXES)

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        return self.files.list_items(log)

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        for name, entry in self.files.load(item):
            try:
                yield self._record(name, entry)
            except AnnotationError as error:
                log.add(error.reason, f"{name}: {error.detail}")

    def _record(self, name: str, entry: dict[str, Any]) -> Record:
        path, size = self.finder.find(first_field(entry, "image", "image_path", "file_name"))
        masks = entry.get("masks", entry.get("mask"))
        masks = masks if isinstance(masks, list) else [] if masks is None else [masks]
        regions = tuple(Region(self._mask(mask, size)) for mask in masks)
        question = _text_field(entry, "question", "text")
        question = question.removeprefix(IMAGE_PLACEHOLDER).strip()
        options = entry.get("options", entry.get("choices")) or []
        if isinstance(options, dict):
            options = [options[letter] for letter in sorted(options)]
        if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
            raise AnnotationError(BAD_ENTRY, f"options is {abridged(options)}: expected a list of texts")
        answer = _text_field(entry, "answer", "label")
        if options:
            answer = _letter(answer, options)
        if len(regions) == 1 and MASK_PLACEHOLDER not in question + answer:
            question = f"<mask> {question}"
        id = str(entry.get("id", entry.get("question_id", name)))
        dialogue = Dialogue(question, answer, tuple(options), tuple(range(len(regions))), id=id)
        return Record(path, size, Path(path).stem, regions, dialogues=(dialogue,))

    def _mask(self, mask: Any, size: tuple[int, int]) -> Any:
        if isinstance(mask, str):
            return str(find_mask(self.masks, mask, BAD_MASK))
        if isinstance(mask, dict) and "polygons" in mask:
            return mask
        return segmentation_mask(mask, size)


def _letter(answer: str, options: list[str]) -> str:
    """The letter of the correct option; the answer is that letter or the option's text."""
    letters = [chr(ord("A") + n) for n in range(len(options))]
    bare = answer.strip().rstrip(".)").lstrip("(").upper()
    if bare in letters:
        return bare
    for letter, option in zip(letters, options, strict=True):
        if option.strip().lower() == answer.strip().lower():
            return letter
    raise AnnotationError(BAD_ENTRY, f"answer is {answer!r:.80}: expected one of the options or its letter")


def _text_field(entry: dict[str, Any], *names: str) -> str:
    """The first of some fields, which must be a text."""
    text = first_field(entry, *names)
    if not isinstance(text, str) or not text.strip():
        raise AnnotationError(BAD_ENTRY, f"{names[0]} is {abridged(text)}: expected a text")
    return text.strip()
