"""The user's own folder of pictures and folder of masks.

Contract: `<root>/images/NAME.jpg` goes with `<root>/masks/NAME.png`, `NAME_2.png`, `NAME-left.png`, …; folders within
`masks` are classes. `<root>/expressions.json`, where there is one, says what each mask shows: {"NAME_2": ["the left
cup"]}. One record per image. Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...coco_masks import short
from ..byte_ranges import parse_json
from ..records import BAD_ENTRY, UNKNOWN_ID, Query, Record, Region, SkipLog
from .reader import IMAGE_SUFFIXES, ImageFinder, Reader, Source, files_below, find_path


class PngPairsReader(Reader):
    """Masks are `annotations` where named, else `masks`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        below = "" if source.split == "all" else f"/{source.split}"
        self.masks = self.annotation_file(f"masks{below}", f"annotations{below}", f"labels{below}")
        self.images = find_path(source.root, source.images, (f"images{below}",), "images")
        self.finder = ImageFinder(source, (str(self.images.absolute()),))
        self.expressions: dict[str, list[str]] = {}

    def tasks(self, log: SkipLog) -> Sequence[tuple[Path, list[Path]]]:
        self._read_expressions(log)
        images = files_below(self.images, IMAGE_SUFFIXES)
        by_stem: dict[str, Path] = {}
        for image in images:
            by_stem.setdefault(image.stem, image)
        own: dict[Path, list[Path]] = {}
        for mask in files_below(self.masks, IMAGE_SUFFIXES):
            image = by_stem.get(_image_stem(mask.stem, by_stem))
            if image is None:
                log.skip(UNKNOWN_ID, f"{mask}: no image of its name in {self.images}")
            else:
                own.setdefault(image, []).append(mask)
        return [(image, own.get(image, [])) for image in images]

    def _read_expressions(self, log: SkipLog) -> None:
        path = self.source.root / "expressions.json"
        if not path.is_file():
            return
        entries = parse_json(path.read_bytes(), str(path))
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: is {short(entries)}: expected an object of lists of texts")
        for name, texts in entries.items():
            texts = [texts] if isinstance(texts, str) else texts
            if isinstance(texts, list) and texts and all(isinstance(t, str) and t.strip() for t in texts):
                self.expressions[Path(name).stem] = [" ".join(text.split()) for text in texts]
            else:
                log.skip(BAD_ENTRY, f"{path}: {name!r} is {short(texts)}: expected texts")

    def records(self, task: tuple[Path, list[Path]], log: SkipLog) -> Iterator[Record]:
        image, masks = task
        path, size = self.finder.find(str(image.absolute()))
        regions, queries = [], []
        for mask in masks:
            folder = mask.relative_to(self.masks).parent
            category = folder.name or self.source.category
            if texts := self.expressions.get(mask.stem):
                queries.append(Query(tuple(texts), (len(regions),), id=mask.stem))
            regions.append(Region(str(mask), category, id=mask.stem))
        present = frozenset(region.category for region in regions if region.category) or None
        yield Record(path, size, image.stem, tuple(regions), tuple(queries), present=present)


def _image_stem(stem: str, known: dict[str, Path]) -> str:
    """The longest image name that the mask's begins with, up to a separator."""
    while stem not in known:
        cut = max(stem.rfind(separator) for separator in "_-.")
        if cut <= 0:
            return stem
        stem = stem[:cut]
    return stem
