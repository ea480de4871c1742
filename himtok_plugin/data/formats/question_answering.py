"""Questions and answers about images: POPE, VQAv2, and questions about masks.

Contract: one record per question, with one dialogue. Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.byte_ranges import Range, Ranges, group_number, read_json, repeated, walk
from himtok_plugin.data.records import (
    BAD_ENTRY,
    REPEATED_ID,
    UNKNOWN_ID,
    BadEntry,
    Dialogue,
    Record,
    Region,
    SkipLog,
)
from himtok_plugin.mask_text import IMAGE_PLACEHOLDER, MASK_PLACEHOLDER
from himtok_plugin.validation import abridged

from .coco_index import segmentation_mask
from .entries import EntryFiles, files_of, first_of
from .reader import ImageFinder, Reader, Source
from .refer import IMAGE_FOLDERS

ANSWERS = {"yes": "Yes", "no": "No"}


class PopeReader(Reader):
    """`coco_pope_<split>.json`, which are JSON lines; images of COCO's val2014."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        names = (f"*pope_{source.split}.json", f"*pope_{source.split}.jsonl", f"coco/*pope_{source.split}.json")
        files = files_of(source.root, source.annotations, names, source.split, one_dataset=True)
        self.files = EntryFiles(files, fields=("label",))
        self.finder = ImageFinder(source, ("val2014", "images/val2014", "coco/val2014", "images", "", "../val2014"))

    def tasks(self, log: SkipLog) -> Sequence[Any]:
        return self.files.tasks(log)

    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        for name, entry in self.files.load(task):
            try:
                label = str(first_of(entry, "label")).strip().lower()
                if label not in ANSWERS:
                    raise BadEntry(BAD_ENTRY, f"label is {label!r:.80}: expected yes or no")
                path, size = self.finder.find(first_of(entry, "image"))
                id = str(entry.get("question_id", name))
                dialogue = Dialogue(_text(entry, "text", "question"), ANSWERS[label], pool="answer_yes_no", id=id)
                yield Record(path, size, Path(path).stem, dialogues=(dialogue,))
            except BadEntry as error:
                log.skip(error.reason, f"{name}: {error.detail}")


class VqaReader(Reader):
    """`v2_OpenEnded_mscoco_<split>2014_questions.json` and `v2_mscoco_<split>2014_annotations.json`.

    The answer is the one that most of the ten people gave (`multiple_choice_answer`).
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        split = source.split
        questions = f"v2_OpenEnded_mscoco_{split}2014_questions.json"
        answers = f"v2_mscoco_{split}2014_annotations.json"
        folder = source.annotations or source.root
        self.questions = files_of(folder, None, (questions, f"*/{questions}"))[0]
        self.answers = files_of(folder, None, (answers, f"*/{answers}"))[0]
        below = (f"{split}2014", f"images/{split}2014", f"coco/{split}2014", "images", "", f"../{split}2014")
        self.finder = ImageFinder(source, below)

    def tasks(self, log: SkipLog) -> Sequence[tuple[Range, Range]]:
        questions, answers = (
            _by_question(self.questions, "questions", log),
            _by_question(self.answers, "annotations", log),
        )
        tasks = []
        for i, number in enumerate(questions.groups().tolist()):
            if own := answers.of(number):
                tasks.append((questions.range(i), own[0]))
            else:
                log.skip(UNKNOWN_ID, f"{self.answers.name}: question {number} has no answer")
        return tasks

    def records(self, task: tuple[Range, Range], log: SkipLog) -> Iterator[Record]:
        question, answer = read_json(self.questions, task[0]), read_json(self.answers, task[1])
        name = f"question {question.get('question_id')}"
        try:
            image = first_of(question, "image_id")
            path, size = self.finder.find(f"COCO_{self.source.split}2014_{image:012}.jpg")
            text = _text(answer, "multiple_choice_answer")
            dialogue = Dialogue(
                _text(question, "question"), text, pool="answer_shortly", id=str(question["question_id"])
            )
        except BadEntry as error:
            raise BadEntry(error.reason, f"{name}: {error.detail}") from error
        yield Record(path, size, str(image), dialogues=(dialogue,))


def _by_question(path: Path, key: str, log: SkipLog) -> Ranges:
    from array import array

    ranges, ids = Ranges(), array("q")
    for found, begin, length, value in walk(path):
        if found != key or not length:
            continue
        if not isinstance(value, dict) or not isinstance(value.get("question_id"), int):
            log.skip(BAD_ENTRY, f"{path.name}: {abridged(value)} has no question_id")
            continue
        ranges.add(value["question_id"], begin, length)
        ids.append(group_number(value["question_id"]))
    again = repeated(ids)
    log.skip_many(REPEATED_ID, [f"{path.name}: question {ids[i]}" for i in again])
    ranges.drop(again)
    return ranges


class MaskPerceptionReader(Reader):
    """Entries of `image`, `question`, `answer`; perhaps `options`, and `mask` or `masks` for each `<mask>` in them.

    A single mask that no text speaks of stands in front of the question. Masks may as well be written out as mask text,
    as the authors' own are; such entries have no `mask`.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        split = None if source.split == "all" else source.split
        files = files_of(source.root, source.annotations, ("*.jsonl", "*.json", "*.parquet"), split)
        self.files = EntryFiles(files, fields=("question", "text", "answer"))
        self.finder = ImageFinder(source, ("images", "", *IMAGE_FOLDERS))

    def tasks(self, log: SkipLog) -> Sequence[Any]:
        return self.files.tasks(log)

    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        for name, entry in self.files.load(task):
            try:
                yield self._record(name, entry)
            except BadEntry as error:
                log.skip(error.reason, f"{name}: {error.detail}")

    def _record(self, name: str, entry: dict[str, Any]) -> Record:
        path, size = self.finder.find_elsewhere(first_of(entry, "image", "image_path", "file_name"))
        masks = entry.get("masks", entry.get("mask"))
        masks = masks if isinstance(masks, list) else [] if masks is None else [masks]
        regions = tuple(Region(self._mask(mask, size)) for mask in masks)
        question = _text(entry, "question", "text")
        question = question.removeprefix(IMAGE_PLACEHOLDER).strip()
        options = entry.get("options", entry.get("choices")) or []
        if isinstance(options, dict):
            options = [options[letter] for letter in sorted(options)]
        if not isinstance(options, list) or not all(isinstance(option, str) and option.strip() for option in options):
            raise BadEntry(BAD_ENTRY, f"options is {abridged(options)}: expected a list of texts")
        answer = _text(entry, "answer", "label")
        if options:
            answer = _letter(answer, options)
        if len(regions) == 1 and MASK_PLACEHOLDER not in question + answer:
            question = f"<mask> {question}"
        id = str(entry.get("id", entry.get("question_id", name)))
        dialogue = Dialogue(question, answer, tuple(options), tuple(range(len(regions))), id=id)
        return Record(path, size, Path(path).stem, regions, dialogues=(dialogue,))

    def _mask(self, mask: Any, size: tuple[int, int]) -> Any:
        if isinstance(mask, str):
            return str(self.source.root / mask)
        if isinstance(mask, dict) and "polygons" in mask:
            return mask
        return segmentation_mask(mask, size)


def _letter(answer: str, options: list[str]) -> str:
    """The letter of the right option, which may be given as its letter or its text."""
    letters = [chr(ord("A") + n) for n in range(len(options))]
    bare = answer.strip().rstrip(".)").lstrip("(").upper()
    if bare in letters:
        return bare
    for letter, option in zip(letters, options, strict=True):
        if option.strip().lower() == answer.strip().lower():
            return letter
    raise BadEntry(BAD_ENTRY, f"answer is {answer!r:.80}: expected one of the options or its letter")


def _text(entry: dict[str, Any], *names: str) -> str:
    text = first_of(entry, *names)
    if not isinstance(text, str) or not text.strip():
        raise BadEntry(BAD_ENTRY, f"{names[0]} is {abridged(text)}: expected a text")
    return text.strip()
