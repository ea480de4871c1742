"""The user's own folder of images and folder of masks.

Contract: `<root>/images/NAME.jpg` belongs to `<root>/masks/NAME.png`, `NAME_2.png`, `NAME-left.png`, …; folders within
`masks` are classes. If `images` has folders, a mask belongs to the image in the same folder, in a folder above it
(`images/day1/NAME.jpg`, `masks/day1/cups/NAME.png`) or in the folder below its class (`masks/cups/day1/NAME.png`);
otherwise to the only image of its name. The optional `<root>/expressions.json` has expressions for masks:
{"NAME_2": ["the left cup"]}, with the folder if the name alone is ambiguous. A mask that matches several images is
skipped. One record per image. With `Source.classes`, a mask is a label map: each class in it is a region, 0 is
background and 255 is unlabelled unless they are classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from himtok_plugin.data.byte_ranges import parse_json_file
from himtok_plugin.data.class_maps import VOID_VALUE, ClassMap
from himtok_plugin.data.records import Query, Record, Region
from himtok_plugin.data.skip_log import AMBIGUOUS, BAD_ENTRY, UNKNOWN_ID, SkipLog
from himtok_plugin.files.names import fold_name
from himtok_plugin.files.splits import split_names
from himtok_plugin.validation import abridged

from .image_finder import ImageFinder
from .label_maps import class_regions, read_label_map
from .reader import ALL, IMAGE_SUFFIXES, Reader, Source, find_path, list_files

_MASK_FOLDERS = ("masks", "annotations", "labels")

PngItem = tuple[Path, list[Path], frozenset[str]]  # image, its masks, classes of ambiguous masks that may belong to it


class PngPairsReader(Reader):
    """`<root>/images` and `<root>/masks`, or the folders given as `images` and `annotations`."""

    hint = (
        "masks get classes from --category, from folders in masks/ or, if they have several labels, from --classes, "
        "such as road=1,car=2"
    )

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        names = [] if source.split == ALL else split_names(source.split)

        def places(folder: str) -> list[str]:
            return [form.format(folder, name) for form in ("{}/{}", "{1}/{0}") for name in names] or [folder]

        self.masks = self.annotation_file(*(place for top in _MASK_FOLDERS for place in places(top)))
        self.images = find_path(source.root, source.images, places("images"), "images")
        self.finder = ImageFinder(source, (str(self.images.absolute()),))
        self.expressions: dict[str, list[str]] = {}
        self.has_classes = False

    def list_items(self, log: SkipLog) -> Sequence[PngItem]:
        images = list_files(self.images, IMAGE_SUFFIXES, log)
        masks = list_files(self.masks, IMAGE_SUFFIXES, log)
        self._read_expressions(masks, log)
        self.has_classes = bool(self.source.classes) or any(map(self._category, masks))
        known = _ImageIndex(images, self.images)
        own: dict[Path, list[Path]] = {}
        unclear: dict[Path, set[str]] = {}
        for mask in masks:
            found = known.candidates(mask.relative_to(self.masks))
            if len(found) == 1:
                own.setdefault(found[0], []).append(mask)
            elif not found:
                log.add(UNKNOWN_ID, f"{mask}: no image of its name in {self.images}")
            else:
                names = ", ".join(str(path.relative_to(self.images)) for path in found[:4])
                log.add(AMBIGUOUS, f"{mask}: {names}")
                for image in found:
                    unclear.setdefault(image, set()).update(filter(None, [self._category(mask)]))
        return [(image, own.get(image, []), frozenset(unclear.get(image, ()))) for image in images]

    def choose_tasks(self) -> tuple[tuple[str, ...], str]:
        if self.expressions:
            return ("segment",), "expressions.json names masks"
        if self.source.classes:
            return ("segment_class",), "the masks are label maps of --classes"
        if self.has_classes:
            return ("segment_class", "segment_instances"), "the masks have classes"
        return (
            ("masks",),
            "the masks have neither classes nor expressions: rows for stage 1; give --category, --classes, folders of "
            "classes in masks/, or expressions.json for questions",
        )

    def _category(self, mask: Path) -> str | None:
        return mask.relative_to(self.masks).parent.name or self.source.category

    def _read_expressions(self, masks: Sequence[Path], log: SkipLog) -> None:
        path = self.source.root / "expressions.json"
        if not path.is_file():
            return
        entries = parse_json_file(path)
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: is {abridged(entries)}: expected an object of lists of texts")
        named: dict[str, list[str]] = {}
        for mask in masks:
            key = self._key(mask)
            for form in {fold_name(key), fold_name(mask.stem)}:
                named.setdefault(form, []).append(key)
        for name, texts in entries.items():
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
                log.add(BAD_ENTRY, f"{path}: {name!r} is {abridged(texts)}: expected texts")
                continue
            keys = _masks_of_name(name, named)
            if len(keys) > 1:
                log.add(AMBIGUOUS, f"{path}: {name!r}: {', '.join(keys[:4])}")
            elif keys:
                self.expressions[keys[0]] = [" ".join(text.split()) for text in texts]
            elif self.source.split == "all":  # otherwise it may belong to another split
                log.add(UNKNOWN_ID, f"{path}: {name!r}: no mask of its name in {self.masks}")

    def _key(self, mask: Path) -> str:
        """A mask's path relative to the folder of masks, without its suffix."""
        return mask.relative_to(self.masks).with_suffix("").as_posix()

    def read_records(self, item: PngItem, log: SkipLog) -> Iterator[Record]:
        image, masks, unclear = item
        path, size = self.finder.find(str(image.absolute()))
        regions: list[Region] = []
        queries = []
        voids = []
        for mask in masks:
            first = len(regions)
            if self.source.classes:
                found, void = self._label_map_regions(mask, size, self.source.classes, log)
                regions += found
                voids.append(void)
            else:
                regions.append(Region(str(mask), self._category(mask), id=mask.stem))
            if (texts := self.expressions.get(self._key(mask))) and len(regions) > first:
                queries.append(Query(tuple(texts), tuple(range(first, len(regions))), id=mask.stem))
        present = frozenset(region.category for region in regions if region.category) | unclear
        yield Record(
            path,
            size,
            image.relative_to(self.images).with_suffix("").as_posix(),
            tuple(regions),
            tuple(queries),
            present=present or None,
            incomplete_classes=unclear,
            void=np.logical_or.reduce(voids) if any(void.any() for void in voids) else None,
        )

    def _label_map_regions(
        self, mask: Path, size: tuple[int, int], classes: ClassMap, log: SkipLog
    ) -> tuple[list[Region], np.ndarray]:
        """A region for each class of a label map, and its unlabelled pixels."""
        values = read_label_map(mask, size, colours=max(classes) > VOID_VALUE)
        regions = class_regions(values, classes, (0, VOID_VALUE), str(mask), log)
        return regions, (values == VOID_VALUE) & (VOID_VALUE not in classes)


def _masks_of_name(name: str, named: Mapping[str, list[str]]) -> list[str]:
    """The masks, by their keys, that a name in `expressions.json` means, in any case: with its folder, or alone."""
    name = name.replace("\\", "/")
    bare = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
    found = named.get(fold_name(bare), [])
    exact = [key for key in found if key == bare] or [key for key in found if fold_name(key) == fold_name(bare)]
    return exact or [key for key in found if Path(key).name == bare] or found


class _ImageIndex:
    """Finds the images that a mask may belong to, by its name and folder."""

    def __init__(self, images: Sequence[Path], top: Path) -> None:
        self._in_folder: dict[tuple[str, ...], dict[str, list[Path]]] = {}
        self._anywhere: dict[str, list[Path]] = {}
        for image in images:
            folder = image.relative_to(top).parent.parts
            for by_stem in (self._in_folder.setdefault(folder, {}), self._anywhere):
                by_stem.setdefault(fold_name(image.stem), []).append(image)

    def candidates(self, mask: Path) -> list[Path]:
        """The images for a mask, whose path is relative to the folder of masks."""
        parts = mask.parent.parts
        for length in range(len(parts), -1, -1):
            folders = {parts[:length], parts[len(parts) - length :]}
            if found := [
                image
                for folder in folders
                for image in _images_of_longest_stem(mask.stem, self._in_folder.get(folder, {}))
            ]:
                return sorted(found)
        return _images_of_longest_stem(mask.stem, self._anywhere)


def _images_of_longest_stem(stem: str, known: dict[str, list[Path]]) -> list[Path]:
    """The images with the longest name that is a prefix of the mask's name, up to a separator."""
    while fold_name(stem) not in known:
        cut = max(stem.rfind(separator) for separator in "_-.")
        if cut <= 0:
            return []
        stem = stem[:cut]
    found = known[fold_name(stem)]
    return [image for image in found if image.stem == stem] or found
