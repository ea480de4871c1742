"""The user's own folder of pictures and folder of masks.

Contract: `<root>/images/NAME.jpg` goes with `<root>/masks/NAME.png`, `NAME_2.png`, `NAME-left.png`, …; folders within
`masks` are classes. With folders within `images`, a mask goes with the image of its own folder, of a folder around it
(`images/day1/NAME.jpg`, `masks/day1/cups/NAME.png`) or of the folder below its class (`masks/cups/day1/NAME.png`), and
without these with the only image of its name. `<root>/expressions.json`, where there is one, says what each mask shows:
{"NAME_2": ["the left cup"]}, with its folder where the name alone is not enough. What fits several is counted, never
guessed. One record per image. Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from himtok_plugin.data.byte_ranges import parse_json
from himtok_plugin.data.records import BAD_ENTRY, UNKNOWN_ID, Query, Record, Region, SkipLog
from himtok_plugin.validation import abridged

from .reader import IMAGE_SUFFIXES, ImageFinder, Reader, Source, files_below, find_path, split_names

AMBIGUOUS = "name fits several files"

Task = tuple[Path, list[Path], frozenset[str]]  # image, its masks, classes of masks that may be its


class PngPairsReader(Reader):
    """Masks are `annotations` where named, else `masks`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        below = [""] if source.split == "all" else [f"/{name}" for name in split_names(source.split)]
        self.masks = self.annotation_file(*(top + name for top in ("masks", "annotations", "labels") for name in below))
        self.images = find_path(source.root, source.images, [f"images{name}" for name in below], "images")
        self.finder = ImageFinder(source, (str(self.images.absolute()),))
        self.expressions: dict[str, list[str]] = {}

    def tasks(self, log: SkipLog) -> Sequence[Task]:
        images = files_below(self.images, IMAGE_SUFFIXES)
        masks = files_below(self.masks, IMAGE_SUFFIXES)
        self._read_expressions(masks, log)
        known = _Images(images, self.images)
        own: dict[Path, list[Path]] = {}
        unclear: dict[Path, set[str]] = {}
        for mask in masks:
            found = known.of(mask.relative_to(self.masks))
            if len(found) == 1:
                own.setdefault(found[0], []).append(mask)
            elif not found:
                log.skip(UNKNOWN_ID, f"{mask}: no image of its name in {self.images}")
            else:
                names = ", ".join(str(path.relative_to(self.images)) for path in found[:4])
                log.skip(AMBIGUOUS, f"{mask}: {names}")
                for image in found:
                    unclear.setdefault(image, set()).update(filter(None, [self._category(mask)]))
        return [(image, own.get(image, []), frozenset(unclear.get(image, ()))) for image in images]

    def _category(self, mask: Path) -> str | None:
        return mask.relative_to(self.masks).parent.name or self.source.category

    def _read_expressions(self, masks: Sequence[Path], log: SkipLog) -> None:
        path = self.source.root / "expressions.json"
        if not path.is_file():
            return
        entries = parse_json(path.read_bytes(), str(path))
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: is {abridged(entries)}: expected an object of lists of texts")
        named: dict[str, list[str]] = {}
        for mask in masks:
            key = self._key(mask)
            named.setdefault(key, []).append(key)
            if mask.stem != key:
                named.setdefault(mask.stem, []).append(key)
        for name, texts in entries.items():
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
                log.skip(BAD_ENTRY, f"{path}: {name!r} is {abridged(texts)}: expected texts")
                continue
            bare = name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
            keys = [bare] if bare in named.get(bare, ()) else named.get(bare, ())
            if len(keys) > 1:
                log.skip(AMBIGUOUS, f"{path}: {name!r}: {', '.join(keys[:4])}")
            elif keys:
                self.expressions[keys[0]] = [" ".join(text.split()) for text in texts]
            elif self.source.split == "all":  # else it may be of another split
                log.skip(UNKNOWN_ID, f"{path}: {name!r}: no mask of its name in {self.masks}")

    def _key(self, mask: Path) -> str:
        """A mask's path within the folder of masks, without its suffix."""
        return mask.relative_to(self.masks).with_suffix("").as_posix()

    def records(self, task: Task, log: SkipLog) -> Iterator[Record]:
        image, masks, unclear = task
        path, size = self.finder.find(str(image.absolute()))
        regions, queries = [], []
        for mask in masks:
            if texts := self.expressions.get(self._key(mask)):
                queries.append(Query(tuple(texts), (len(regions),), id=mask.stem))
            regions.append(Region(str(mask), self._category(mask), id=mask.stem))
        present = frozenset(region.category for region in regions if region.category) | unclear
        yield Record(
            path,
            size,
            image.relative_to(self.images).with_suffix("").as_posix(),
            tuple(regions),
            tuple(queries),
            present=present or None,
            incomplete_classes=unclear,
        )


class _Images:
    """Images by what a mask's name and folder say of them."""

    def __init__(self, images: Sequence[Path], top: Path) -> None:
        self._in_folder: dict[tuple[str, ...], dict[str, list[Path]]] = {}
        self._anywhere: dict[str, list[Path]] = {}
        for image in images:
            folder = image.relative_to(top).parent.parts
            for by_stem in (self._in_folder.setdefault(folder, {}), self._anywhere):
                by_stem.setdefault(image.stem, []).append(image)

    def of(self, mask: Path) -> list[Path]:
        """Those that a mask, relative to the folder of masks, may belong to."""
        parts = mask.parent.parts
        for length in range(len(parts), -1, -1):
            folders = {parts[:length], parts[len(parts) - length :]}
            if found := [image for folder in folders for image in _of_stem(mask.stem, self._in_folder.get(folder, {}))]:
                return sorted(found)
        return _of_stem(mask.stem, self._anywhere)


def _of_stem(stem: str, known: dict[str, list[Path]]) -> list[Path]:
    """The images with the longest name that the mask's begins with, up to a separator."""
    while stem not in known:
        cut = max(stem.rfind(separator) for separator in "_-.")
        if cut <= 0:
            return []
        stem = stem[:cut]
    return known[stem]
