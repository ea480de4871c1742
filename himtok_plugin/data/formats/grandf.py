"""Grounded conversations in GLaMM's GranD-f format: a caption whose phrases have masks.

Contract: an entry is one record with one text. Supported are GranD-f and OpenPSG (`groundings` by phrase, with
`token_positives`, which are character ranges of the caption, and `rle_masks`), RefCOCOg-GCG (`refs` with `sentence` and
`segmentation`), and the part from Flickr30k (COCO's layout: images with `caption`, annotations with `tokens_positive`
and `sam_mask`). A phrase that overlaps an earlier one, or is not in the caption, is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from himtok_plugin.data.byte_ranges import Range, read_json_at
from himtok_plugin.data.records import GroundedText, Record, Region
from himtok_plugin.data.skip_log import BAD_ENTRY, AnnotationError, SkipLog
from himtok_plugin.validation import abridged

from .coco_index import CocoIndex, has_coco_layout, segmentation_mask
from .entries import ConcatenatedSequence, EntryFiles, find_entry_files, first_field
from .image_finder import ImageFinder
from .reader import Reader, Source
from .refer import IMAGE_FOLDERS

NOT_IN_CAPTION = "phrase is not in its caption, or overlaps another"


class GrandfReader(Reader):
    """`*GCG*<split>*.json` below the root or `annotations/<split>`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        split = source.split
        # The authors keep the files of both splits in `train`.
        folders = ("", f"annotations/{split}/", "annotations/train/", "annotations/")
        names = [f"{folder}{name}" for name in ("*GCG*.json", "*.json") for folder in folders]
        files = find_entry_files(source.root, source.annotations, names, split)
        self.coco = [path for path in files if path.suffix == ".json" and has_coco_layout(path)]
        self.files = EntryFiles([path for path in files if path not in self.coco], fields=("caption",))
        self.finder = ImageFinder(source, (*_image_folders(split), *IMAGE_FOLDERS))

    def list_items(self, log: SkipLog) -> Sequence[Any]:
        return ConcatenatedSequence(
            [self.files.list_items(log), *(CocoIndex.read(path, log).image_items() for path in self.coco)]
        )

    def read_records(self, item: Any, log: SkipLog) -> Iterator[Record]:
        number, where = item
        entries = self.files.load(where) if number == 0 else _load_coco_entry(self.coco[number - 1], *where)
        for name, entry in entries:
            if len(entry) == 1 and isinstance(only := next(iter(entry.values())), dict):
                entry = only  # RefCOCOg-GCG: {"581857": {…}}
            try:
                yield self._record(name, entry, log)
            except AnnotationError as error:
                log.add(error.reason, f"{name}: {error.detail}")

    def _record(self, name: str, entry: dict[str, Any], log: SkipLog) -> Record:
        caption = first_field(entry, "caption")
        if not isinstance(caption, str):
            raise AnnotationError(BAD_ENTRY, f"caption is {abridged(caption)}: expected a text")
        path, size = self.finder.find(first_field(entry, "file_name", "img_file_name", "image"))
        regions: list[Region] = []
        spans: list[tuple[int, int, tuple[int, ...]]] = []
        for phrase, place, masks in _grounded_phrases(entry, size):
            begin, end = _phrase_span(caption, phrase, place)
            if begin < 0 or any(begin < e and b < end for b, e, _ in spans):
                log.add(NOT_IN_CAPTION, f"{name}: {phrase!r:.80}")
                continue
            spans.append((begin, end, tuple(range(len(regions), len(regions) + len(masks)))))
            regions += [Region(mask, id=f"{phrase}") for mask in masks]
        if not spans:
            raise AnnotationError(BAD_ENTRY, "no phrase of the caption has a mask")
        pieces: list[Any] = []
        at = 0
        for begin, end, targets in sorted(spans):
            pieces += [caption[at:begin], (caption[begin:end], targets)]
            at = end
        pieces.append(caption[at:])
        id = str(entry.get("image_id", entry.get("id", name)))
        return Record(
            path, size, id, tuple(regions), grounded_texts=(GroundedText(tuple(filter(None, pieces)), id=id),)
        )


def _image_folders(split: str) -> Iterator[str]:
    """The authors' folders, beside the folder of GranD-f or below it."""
    flickr = [f"{name}/train" for name in ("flikcr_30k", "flickr30k")]
    flickr += ["flikcr_30k", "flickr30k", "flickr30k/flickr30k-images", "flickr30k-images"]
    grandf = [f"GranDf_HA_images/{split}", "GranDf_HA_images"]
    for top in ("", "../"):
        yield from (top + name for name in (*grandf, f"{split}2017", f"coco_2017/{split}2017", "coco_2017/train2017"))
        yield from (top + name for name in ("train2017", "coco_2014/train2014", *flickr))


def _load_coco_entry(path: Path, where: Range, places: Sequence[Range]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name for errors, entry) of an image and its annotations."""
    image = read_json_at(path, where)
    annotations = [read_json_at(path, place) for place in places]
    name = f"{path.name} at byte {where[0]}"
    if not isinstance(image, dict) or not all(isinstance(annotation, dict) for annotation in annotations):
        raise AnnotationError(BAD_ENTRY, f"{name}: expected an image and its annotations")
    yield name, {**image, "image_id": image.get("id"), "annotations": annotations}


def _grounded_phrases(entry: dict[str, Any], size: tuple[int, int]) -> Iterator[tuple[str, Any, list[Any]]]:
    """(phrase, its character range in the caption or None, masks)"""
    groundings = entry.get("groundings")
    if isinstance(groundings, dict):
        for phrase, grounding in groundings.items():
            if not isinstance(grounding, dict):
                raise AnnotationError(BAD_ENTRY, f"{phrase!r:.80}: {abridged(grounding)}")
            rles = grounding.get("rle_masks")
            if not isinstance(rles, list) or not rles:
                raise AnnotationError(
                    BAD_ENTRY, f"{phrase!r:.80}: rle_masks is {abridged(rles)}: expected a list of RLE"
                )
            yield phrase, grounding.get("token_positives"), [segmentation_mask(rle, size) for rle in rles]
        return
    if "annotations" in entry:
        yield from _flickr_phrases(entry, size)
        return
    refs = first_field(entry, "groundings", "refs")
    for ref in refs if isinstance(refs, list) else []:
        phrase = first_field(ref, "sentence", "phrase") if isinstance(ref, dict) else None
        yield str(phrase), None, [segmentation_mask(ref.get("segmentation"), size)]


def _flickr_phrases(entry: dict[str, Any], size: tuple[int, int]) -> Iterator[tuple[str, Any, list[Any]]]:
    """Annotations with the same character range are one phrase; ignored annotations are left out."""
    masks: dict[tuple[int, int], list[Any]] = {}
    for annotation in entry["annotations"]:
        if annotation.get("ignore"):
            continue
        places = annotation.get("tokens_positive")
        place = places[0] if isinstance(places, list) and places else None
        if not isinstance(place, list) or len(place) != 2 or not all(isinstance(value, int) for value in place):
            raise AnnotationError(BAD_ENTRY, f"tokens_positive is {abridged(places)}: expected [[begin, end], …]")
        mask = segmentation_mask(first_field(annotation, "sam_mask", "segmentation"), size)
        masks.setdefault((place[0], place[1]), []).append(mask)
    for (begin, end), own in masks.items():
        yield entry["caption"][begin:end], [begin, end], own


def _phrase_span(caption: str, phrase: str, place: Any) -> tuple[int, int]:
    """Begin and end of the phrase in the caption; (-1, -1) if it is not there."""
    if isinstance(place, list) and place and isinstance(place[0], list):
        place = place[0]  # its first occurrence
    if isinstance(place, list) and len(place) == 2 and all(isinstance(v, int) for v in place):
        begin, end = place
        if 0 <= begin < end <= len(caption):
            return begin, end
    begin = caption.lower().find(phrase.lower())
    return (begin, begin + len(phrase)) if begin >= 0 and phrase else (-1, -1)
