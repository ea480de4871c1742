"""Grounded conversations as GLaMM's GranD-f has them: a caption whose phrases have masks.

Contract: an entry is one record with one text. Read are GranD-f and OpenPSG (`groundings` by phrase, with
`token_positives`, which are places in the caption, and `rle_masks`), RefCOCOg-GCG (`refs` with `sentence` and
`segmentation`), and the part from Flickr30k (COCO's layout: images with `caption`, annotations with `tokens_positive`
and `sam_mask`). Phrases that overlap an earlier one, or are not in the caption, are left out and counted.
Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.byte_ranges import Range, read_json
from himtok_plugin.data.records import BAD_ENTRY, BadEntry, Grounded, Record, Region, SkipLog
from himtok_plugin.validation import abridged

from .coco_index import CocoIndex, in_coco_layout, segmentation_mask
from .entries import EntryFiles, Joined, files_of, first_of
from .reader import ImageFinder, Reader, Source
from .refer import IMAGE_FOLDERS

NOT_IN_CAPTION = "phrase is not in its caption, or overlaps another"


class GrandfReader(Reader):
    """`*GCG*<split>*.json` below the root or `annotations/<split>`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        split = source.split
        # The authors' files of both splits lie in `train`.
        folders = ("", f"annotations/{split}/", "annotations/train/", "annotations/")
        names = [f"{folder}{name}" for name in ("*GCG*.json", "*.json") for folder in folders]
        files = files_of(source.root, source.annotations, names, split)
        self.coco = [path for path in files if path.suffix == ".json" and in_coco_layout(path)]
        self.files = EntryFiles([path for path in files if path not in self.coco], fields=("caption",))
        self.finder = ImageFinder(source, (*_image_folders(split), *IMAGE_FOLDERS))

    def tasks(self, log: SkipLog) -> Sequence[Any]:
        return Joined([self.files.tasks(log), *(CocoIndex.read(path, log).image_tasks() for path in self.coco)])

    def records(self, task: Any, log: SkipLog) -> Iterator[Record]:
        number, place = task
        for name, entry in self.files.load(place) if not number else _of_coco(self.coco[number - 1], *place[:2]):
            if len(entry) == 1 and isinstance(only := next(iter(entry.values())), dict):
                entry = only  # RefCOCOg-GCG: {"581857": {…}}
            try:
                yield self._record(name, entry, log)
            except BadEntry as error:
                log.skip(error.reason, f"{name}: {error.detail}")

    def _record(self, name: str, entry: dict[str, Any], log: SkipLog) -> Record:
        caption = first_of(entry, "caption")
        if not isinstance(caption, str):
            raise BadEntry(BAD_ENTRY, f"caption is {abridged(caption)}: expected a text")
        path, size = self.finder.find_elsewhere(first_of(entry, "file_name", "img_file_name", "image"))
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


def _image_folders(split: str) -> Iterator[str]:
    """As the authors lay them out, beside the folder of GranD-f or below it."""
    flickr = [f"{name}/train" for name in ("flikcr_30k", "flickr30k")]
    flickr += ["flikcr_30k", "flickr30k", "flickr30k/flickr30k-images", "flickr30k-images"]
    grandf = [f"GranDf_HA_images/{split}", "GranDf_HA_images"]
    for top in ("", "../"):
        yield from (top + name for name in (*grandf, f"{split}2017", f"coco_2017/{split}2017", "coco_2017/train2017"))
        yield from (top + name for name in ("train2017", "coco_2014/train2014", *flickr))


def _of_coco(path: Path, where: Range, places: Sequence[Range]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name for errors, entry) of an image and its annotations."""
    image = read_json(path, where)
    annotations = [read_json(path, place) for place in places]
    name = f"{path.name} at byte {where[0]}"
    if not isinstance(image, dict) or not all(isinstance(annotation, dict) for annotation in annotations):
        raise BadEntry(BAD_ENTRY, f"{name}: expected an image and its annotations")
    yield name, {**image, "image_id": image.get("id"), "annotations": annotations}


def _phrases(entry: dict[str, Any], size: tuple[int, int]) -> Iterator[tuple[str, Any, list[Any]]]:
    """(phrase, its place or None, masks)"""
    groundings = entry.get("groundings")
    if isinstance(groundings, dict):
        for phrase, grounding in groundings.items():
            if not isinstance(grounding, dict):
                raise BadEntry(BAD_ENTRY, f"{phrase!r:.80}: {abridged(grounding)}")
            rles = grounding.get("rle_masks")
            if not isinstance(rles, list) or not rles:
                raise BadEntry(BAD_ENTRY, f"{phrase!r:.80}: rle_masks is {abridged(rles)}: expected a list of RLE")
            yield phrase, grounding.get("token_positives"), [segmentation_mask(rle, size) for rle in rles]
        return
    if "annotations" in entry:
        yield from _flickr_phrases(entry, size)
        return
    refs = first_of(entry, "groundings", "refs")
    for ref in refs if isinstance(refs, list) else []:
        phrase = first_of(ref, "sentence", "phrase") if isinstance(ref, dict) else None
        yield str(phrase), None, [segmentation_mask(ref.get("segmentation"), size)]


def _flickr_phrases(entry: dict[str, Any], size: tuple[int, int]) -> Iterator[tuple[str, Any, list[Any]]]:
    """Annotations of one place in the caption are one phrase; those to be ignored are not of it."""
    masks: dict[tuple[int, int], list[Any]] = {}
    for annotation in entry["annotations"]:
        if annotation.get("ignore"):
            continue
        places = annotation.get("tokens_positive")
        place = places[0] if isinstance(places, list) and places else None
        if not isinstance(place, list) or len(place) != 2 or not all(isinstance(value, int) for value in place):
            raise BadEntry(BAD_ENTRY, f"tokens_positive is {abridged(places)}: expected [[begin, end], …]")
        mask = segmentation_mask(first_of(annotation, "sam_mask", "segmentation"), size)
        masks.setdefault(tuple(place), []).append(mask)
    for (begin, end), own in masks.items():
        yield entry["caption"][begin:end], [begin, end], own


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
