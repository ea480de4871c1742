"""Folders of images and mask images, as `himtok prepare png` reads them: `images/NAME.jpg`, `masks/CLASS/NAME_1.png`.

Contract: a mask image has 0 and 255. Its name leads to its image alone, although names of masks may go on behind `_`,
`-` or `.`. `expressions.json` has the expressions. There are no scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

from himtok_plugin.files.names import fold_name

from .annotations import ExportImage, ExportObject

_UNUSABLE = re.compile(r'[\x00-\x1f/\\:*?"<>|]')  # in names of folders on some machine
_SEPARATORS = "_-."
_LONGEST_FOLDER = 60  # characters; file systems allow 255 bytes


class MaskNames:
    """Names of mask images.

    Args:
        stems: of the names of all images, without suffixes.
        labels: of all objects.
    """

    def __init__(self, stems: Iterable[str], labels: Iterable[str]) -> None:
        self._stems = {fold_name(stem) for stem in stems}
        self.folders: dict[str, str] = {}
        taken: set[str] = set()
        for label in labels:
            base = folder = _UNUSABLE.sub("_", label)[:_LONGEST_FOLDER].strip(" .") or "_"
            number = 1
            while fold_name(folder) in taken:
                number += 1
                folder = f"{base} {number}"
            taken.add(fold_name(folder))
            self.folders[label] = folder

    @property
    def changed(self) -> dict[str, str]:
        """The labels that no folder can be called, and their folders."""
        return {label: folder for label, folder in self.folders.items() if label != folder}

    def name_objects(self, stem: str, objects: Iterable[ExportObject]) -> Iterator[tuple[str, ExportObject]]:
        """Yield each object with its mask's path below `masks`, with slashes and without suffix."""
        for number, each in enumerate(objects, 1):
            written = str(number)
            while self._leads_elsewhere(name := f"{stem}_{written}", stem):
                written = f"0{written}"  # `a_1` is another image, or begins the name of one
            yield f"{self.folders[each.label]}/{name}", each

    def _leads_elsewhere(self, name: str, stem: str) -> bool:
        """Whether a reader that cuts the name at its separators, from its end, meets another image first."""
        while fold_name(name) not in self._stems:
            name = name[: max(name.rfind(separator) for separator in _SEPARATORS)]
        return fold_name(name) != fold_name(stem)


def draw_mask(each: ExportObject) -> np.ndarray:
    """A mask image: uint8 (h, w) of 0 and 255."""
    return each.mask.astype(np.uint8) * 255


def list_expressions(names: MaskNames, stem: str, image: ExportImage) -> dict[str, list[str]]:
    """The entries of `expressions.json` for an image."""
    return {
        name: [each.expression] for name, each in names.name_objects(stem, image.drawn) if each.expression is not None
    }
