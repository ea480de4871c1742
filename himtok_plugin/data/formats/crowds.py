"""What `iscrowd: 1` means in a file: a group of objects, as in COCO, or a single object.

COCO marks groups of objects that were not annotated one by one, and stores these as RLE. CVAT and datumaro store every
mask that was painted as RLE with `iscrowd: 1`, although it is one object. Contract: `CrowdCounts` sees all annotations
of a file once and decides for the file as a whole. A group counts for its class, but it is no single object.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from himtok_plugin.data.skip_log import SkipLog


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation or a panoptic segment has `iscrowd` set: 1, true or "1"."""
    return annotation.get("iscrowd") not in (None, 0, "0", "", "false")


class CrowdCounts:
    """Counts the masks of a file by `iscrowd` and form.

    Attributes:
        crowds, others: masks with and without `iscrowd`.
        other_rles: masks that are RLE, without `iscrowd`.
        of_tools: masks that are RLE, with `iscrowd` and the field `attributes`, which CVAT and datumaro write and COCO
            does not.
    """

    def __init__(self) -> None:
        self.crowds = self.others = self.other_rles = self.of_tools = 0

    def add(self, annotation: Mapping[str, Any]) -> None:
        """Count an annotation with a mask, or all segments of a panoptic annotation."""
        segments = annotation.get("segments_info")
        if isinstance(segments, list):
            for segment in segments:
                if isinstance(segment, dict):
                    self.crowds += is_crowd(segment)
                    self.others += not is_crowd(segment)
        elif mask := annotation.get("segmentation"):
            is_rle = isinstance(mask, dict)
            if is_crowd(annotation):
                self.crowds += 1
                self.of_tools += is_rle and isinstance(annotation.get("attributes"), dict)
            else:
                self.others += 1
                self.other_rles += is_rle

    def are_objects(self, choice: str, path: Path, log: SkipLog) -> bool:
        """Whether crowds are single objects; a note says what "auto" has chosen.

        Args:
            choice: "auto", "objects" or "groups", the values of `--crowds`. "auto": they are if every mask of the file
                is one, or if all crowds are RLE with CVAT's and datumaro's `attributes` and no other mask is RLE.
        """
        if choice != "auto" or not self.crowds:
            return choice == "objects"
        found = f"{path}: {self.crowds} of {self.crowds + self.others} masks have iscrowd 1"
        if not self.others or (self.of_tools == self.crowds and not self.other_rles):
            log.notes.append(
                f"{found}, as CVAT and datumaro write masks of single objects: read as objects; "
                "--crowds groups reads them as groups of objects"
            )
            return True
        log.notes.append(
            f"{found}, as COCO marks groups of objects: they are no single objects; --crowds objects reads them as such"
        )
        return False
