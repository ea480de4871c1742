"""Grounded conversations as GLaMM's GranD-f has them: a caption whose phrases have masks.

Contract: an entry is one record with one text. Read are GranD-f and OpenPSG (`groundings` by phrase, with
`token_positives`, which are places in the caption, and `rle_masks`), and RefCOCOg-GCG (`refs` with `sentence` and
`segmentation`). Phrases that overlap an earlier one, or are not in the caption, are left out and counted.
Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ...coco_masks import short
from ..records import BAD_ENTRY, BadEntry, Grounded, Record, Region, SkipLog
from .coco_index import segmentation_mask
from .entries import EntryFiles, files_of, first_of
from .reader import ImageFinder, Reader, Source
from .refer import IMAGE_FOLDERS

NOT_IN_CAPTION = "phrase is not in its caption, or overlaps another"


class GrandfReader(Reader):
    """`*GCG*<split>*.json` below the root or `annotations/<split>`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        split = source.split
        names = [f"{folder}*{split}*.json" for folder in ("", f"annotations/{split}/", "annotations/")]
        self.files = EntryFiles(files_of(source.root, source.annotations, names))
        below = (f"GranDf_HA_images/{split}", "GranDf_HA_images", f"{split}2017", f"coco_2017/{split}2017", "train2017")
        self.finder = ImageFinder(source, (*below, *IMAGE_FOLDERS))

    def tasks(self, log: SkipLog) -> Sequence[Any]:
        return self.files.tasks(log)

    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        for name, entry in self.files.load(task):
            if len(entry) == 1 and isinstance(only := next(iter(entry.values())), dict):
                entry = only  # RefCOCOg-GCG: {"581857": {…}}
            try:
                yield self._record(name, entry, log)
            except BadEntry as error:
                log.skip(error.reason, f"{name}: {error.detail}")

    def _record(self, name: str, entry: dict[str, Any], log: SkipLog) -> Record:
        caption = first_of(entry, "caption")
        if not isinstance(caption, str):
            raise BadEntry(BAD_ENTRY, f"caption is {short(caption)}: expected a text")
        path, size = self.finder.find(first_of(entry, "file_name", "img_file_name", "image"))
        regions: list[Region] = []
        spans: list[tuple[int, int, tuple[int, ...]]] = []
        for phrase, place, masks in _phrases(entry, size):
            begin, end = _place(caption, phrase, place)
            if begin < 0 or any(begin < e and b < end for b, e, _ in spans):
                log.skip(NOT_IN_CAPTION, f"{name}: {phrase!r:.80}")
                continue
            spans.append((begin, end, tuple(range(len(regions), len(regions) + len(masks)))))
            regions += [Region(mask, id=f"{phrase}") for mask in masks]
        if not spans:
            raise BadEntry(BAD_ENTRY, "no phrase of its caption has a mask")
        pieces: list[Any] = []
        at = 0
        for begin, end, targets in sorted(spans):
            pieces += [caption[at:begin], (caption[begin:end], targets)]
            at = end
        pieces.append(caption[at:])
        id = str(entry.get("image_id", entry.get("id", name)))
        return Record(path, size, id, tuple(regions), grounded=(Grounded(tuple(filter(None, pieces)), id=id),))


def _phrases(entry: dict[str, Any], size: tuple[int, int]) -> Iterator[tuple[str, Any, list[Any]]]:
    """(phrase, its place or None, masks)"""
    groundings = entry.get("groundings")
    if isinstance(groundings, dict):
        for phrase, grounding in groundings.items():
            if not isinstance(grounding, dict):
                raise BadEntry(BAD_ENTRY, f"{phrase!r:.80}: {short(grounding)}")
            rles = grounding.get("rle_masks")
            if not isinstance(rles, list) or not rles:
                raise BadEntry(BAD_ENTRY, f"{phrase!r:.80}: rle_masks is {short(rles)}: expected a list of RLE")
            yield phrase, grounding.get("token_positives"), [segmentation_mask(rle, size) for rle in rles]
        return
    refs = first_of(entry, "groundings", "refs")
    for ref in refs if isinstance(refs, list) else []:
        phrase = first_of(ref, "sentence", "phrase") if isinstance(ref, dict) else None
        yield str(phrase), None, [segmentation_mask(ref.get("segmentation"), size)]


def _place(caption: str, phrase: str, place: Any) -> tuple[int, int]:
    """Begin and end of the phrase; (-1, -1) if it is nowhere."""
    if isinstance(place, list) and place and isinstance(place[0], list):
        place = place[0]  # the first time that it is said
    if isinstance(place, list) and len(place) == 2 and all(isinstance(v, int) for v in place):
        begin, end = place
        if 0 <= begin < end <= len(caption):
            return begin, end
    begin = caption.lower().find(phrase.lower())
    return (begin, begin + len(phrase)) if begin >= 0 and phrase else (-1, -1)
