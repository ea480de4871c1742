"""Referring boxes: the REC jsonl that Qwen-VL and InternVL evaluate with, and Qwen-VL's conversations with `<box>`.

Contract: an entry is one record, with one region (a box without a mask) per box. `bbox` is x1, y1, x2, y2 in pixels;
`<box>(x1,y1),(x2,y2)</box>` is in thousandths of the image size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.annotation_values import annotated_size
from himtok_plugin.data.records import Box, Query, Record, Region
from himtok_plugin.data.skip_log import BAD_BOX, BAD_ENTRY, AnnotationError, SkipLog
from himtok_plugin.metrics.boxes import boxes_in_text
from himtok_plugin.validation import abridged, finite_numbers

from .entries import EntryFiles, find_entry_files, first_field
from .image_finder import ImageFinder
from .reader import Reader, Source
from .refer import IMAGE_FOLDERS

_IMAGE = re.compile(r"<img>(.*?)</img>")
_REFERENT = re.compile(r"<ref>([^<]*)</ref>\s*((?:<box>\(\d+,\s*\d+\),\s*\(\d+,\s*\d+\)</box>\s*)+)")


class RecReader(Reader):
    """`*<split>*.jsonl` or `.json` below the root, of one dataset."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        files = find_entry_files(source.root, source.annotations, ("*.jsonl", "*.json"), source.split, one_dataset=True)
        self.files = EntryFiles(files, fields=("bbox", "boxes", "conversations"))
        self.finder = ImageFinder(source, ("", *IMAGE_FOLDERS))

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        return self.files.list_items(log)

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        for name, entry in self.files.load(item):
            try:
                yield (
                    self._conversation_record(name, entry)
                    if "conversations" in entry
                    else self._box_record(name, entry, log)
                )
            except AnnotationError as error:
                log.add(error.reason, f"{name}: {error.detail}")

    def _box_record(self, name: str, entry: dict[str, Any], log: SkipLog) -> Record:
        annotated = annotated_size(entry.get("height"), entry.get("width"), log, name)
        path, size = self.finder.find(first_field(entry, "image", "img_path", "file_name"), annotated)
        texts = first_field(entry, "sent", "expression", "caption", "text", "ref")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise AnnotationError(BAD_ENTRY, f"expression is {abridged(texts)}: expected a text")
        boxes = first_field(entry, "bbox", "boxes")
        boxes = boxes if isinstance(boxes, list) and boxes and isinstance(boxes[0], list) else [boxes]
        regions = tuple(Region(None, box=_parse_box(box)) for box in boxes)
        id = str(entry.get("id", entry.get("question_id", name)))
        query = Query(tuple(" ".join(text.split()) for text in texts), tuple(range(len(regions))), id=id)
        return Record(path, size, Path(path).stem, regions, (query,))

    def _conversation_record(self, name: str, entry: dict[str, Any]) -> Record:
        turns = entry["conversations"]
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise AnnotationError(BAD_ENTRY, f"conversations is {abridged(turns)}: expected a list of turns")
        text = "\n".join(str(turn.get("value", turn.get("content", ""))) for turn in turns)
        named = _IMAGE.search(text)
        path, size = self.finder.find(named[1].strip() if named else first_field(entry, "image", "images"))
        regions: list[Region] = []
        queries: list[Query] = []
        for phrase, boxes in dict.fromkeys(_REFERENT.findall(text)):
            first = len(regions)
            regions += [Region(None, box=box) for box in boxes_in_text(boxes, size)]
            id = f"{entry.get('id', name)}/{len(queries)}"
            queries.append(Query((" ".join(phrase.split()),), tuple(range(first, len(regions))), id=id))
        if not queries:
            raise AnnotationError(BAD_ENTRY, "no <ref>…</ref><box>…</box> in its conversations")
        return Record(path, size, Path(path).stem, tuple(regions), tuple(queries))


def _parse_box(box: Any) -> Box:
    try:
        x1, y1, x2, y2 = finite_numbers(box).tolist()
    except ValueError as error:
        raise AnnotationError(BAD_BOX, f"got {abridged(box)}: expected x1, y1, x2, y2") from error
    return x1, y1, x2, y2
