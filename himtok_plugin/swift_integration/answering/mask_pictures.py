"""`--mask_dir`: masks and overlays of answers as PNG files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

from himtok_plugin.masks.drawing import overlay
from himtok_plugin.prediction.predictor import PredictedMask
from himtok_plugin.swift_integration.samples.sample_images import load_sample_image


class MaskPictures:
    """Writes masks and overlays to a folder, numbered by answer.

    The numbers continue after those of existing files, of a run that `--resume_result` continues or of a former
    dialogue.

    Args:
        folder: made if it does not exist.
        rank: of the process; all but the first put it into the names of their files.
    """

    def __init__(self, folder: str, rank: int = -1):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prefix = f"rank{rank}_" if rank > 0 else ""
        own = re.compile(rf"{self.prefix}(\d+)_(?:mask\d+|overlay)\.png")
        found = [int(match[1]) for path in self.folder.iterdir() if (match := own.fullmatch(path.name))]
        self._number = max(found, default=-1) + 1

    def write(self, row: dict[str, Any], masks: list[PredictedMask]) -> list[str]:
        """Write one PNG per mask (0 or 255) and one overlay; return their paths, none for an answer without masks.

        Args:
            row: the result, with `images`.
            masks: its predicted masks.
        """
        number, self._number = self._number, self._number + 1
        paths = []
        for i, mask in enumerate(masks):
            path = self.folder / f"{self.prefix}{number:05d}_mask{i}.png"
            Image.fromarray(mask.mask).save(path)
            paths.append(os.fspath(path))
        if masks:
            path = self.folder / f"{self.prefix}{number:05d}_overlay.png"
            overlay(load_sample_image(row["images"][0]), [mask.mask for mask in masks]).save(path)
            paths.append(os.fspath(path))
        return paths
