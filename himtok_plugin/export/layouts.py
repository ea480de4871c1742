"""The files of each format in the folder of an export.

Contract: `LAYOUTS` lists the formats. A layout writes its files into a folder; images have been placed below
`images_folder` and are named by `ExportImage.name`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from .annotations import MASKS, POLYGONS, ExportImage
from .coco import build_coco
from .cvat import build_cvat, build_cvat_labels
from .label_me import build_label_me
from .label_studio import build_label_studio_config, build_label_studio_task
from .mask_images import MaskNames, draw_mask, list_expressions
from .yolo import build_yolo_labels, build_yolo_yaml


@dataclass(frozen=True)
class Plan:
    """What a layout writes.

    Attributes:
        images: decoded one at a time.
        stems: names of all images without their suffixes.
        labels: of all objects, in order of appearance.
        shapes: `masks` or `polygons`.
        tolerance: of polygons, in pixels.
        images_from: the folder of the images, relative to the annotations' folder, or absolute.
        notes: a layout adds what the user has to know.
    """

    images: Iterable[ExportImage]
    stems: Sequence[str]
    labels: Sequence[str]
    shapes: str
    tolerance: float
    images_from: str
    notes: list[str]


@dataclass(frozen=True)
class Layout:
    """One format.

    Attributes:
        about: what it is, for help texts.
        write: writes the files of a plan into a folder.
        shapes: the kinds of shapes that it has, the default first.
        images_folder: where images are placed; empty: beside the annotations.
        parts: folders that the format writes as a whole.
        lacks: what it has no field for.
        reader: the name of `himtok prepare` for it.
    """

    about: str
    write: Callable[[Plan, Path], None]
    shapes: tuple[str, ...]
    reader: str
    images_folder: str = "images"
    parts: tuple[str, ...] = ("images",)
    lacks: tuple[str, ...] = ()


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _write_coco(plan: Plan, folder: Path) -> None:
    content = build_coco(plan.images, plan.shapes, plan.tolerance, plan.labels)
    path = folder / "annotations" / "instances_default.json"  # where CVAT and datumaro look for it
    path.parent.mkdir()
    path.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_label_me(plan: Plan, folder: Path) -> None:
    for image in plan.images:
        where = PurePosixPath(plan.images_from, image.name).as_posix()
        content = build_label_me(image, plan.shapes, plan.tolerance, where)
        _write_json(folder / Path(image.name).with_suffix(".json"), content)


def _write_yolo(plan: Plan, folder: Path) -> None:
    classes = {label: number for number, label in enumerate(plan.labels)}
    for image in plan.images:
        path = folder / "labels" / Path(image.name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(build_yolo_labels(image, classes, plan.tolerance), encoding="utf-8")
    (folder / "data.yaml").write_text(build_yolo_yaml(plan.labels), encoding="utf-8")


def _write_cvat(plan: Plan, folder: Path) -> None:
    with open(folder / "annotations.xml", "w", encoding="utf-8") as file:
        file.writelines(build_cvat(plan.images, plan.labels, plan.shapes, plan.tolerance))
    _write_json(folder / "labels.json", build_cvat_labels(plan.labels))


def _write_masks(plan: Plan, folder: Path) -> None:
    names = MaskNames(plan.stems, plan.labels)
    expressions: dict[str, list[str]] = {}
    (folder / "masks").mkdir(exist_ok=True)
    for image in plan.images:
        stem = Path(image.name).with_suffix("").as_posix()
        for name, each in names.name_objects(stem, image.drawn):
            path = folder / "masks" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_mask(each)).save(path)
        expressions |= list_expressions(names, stem, image)
    if expressions:
        _write_json(folder / "expressions.json", expressions)
    for label, written in names.changed.items():
        plan.notes.append(f"the label {label!r:.80} is the folder {written!r}")


def _write_label_studio(plan: Plan, folder: Path) -> None:
    below = "" if Path(plan.images_from).is_absolute() else plan.images_from
    tasks = [
        build_label_studio_task(image, plan.shapes, plan.tolerance, PurePosixPath(below, image.name).as_posix())
        for image in plan.images
    ]
    (folder / "tasks.json").write_text(json.dumps(tasks, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "config.xml").write_text(build_label_studio_config(plan.labels, plan.shapes), encoding="utf-8")


_NEITHER = ("scores", "expressions")
LAYOUTS = {
    "coco": Layout("COCO-JSON", _write_coco, (MASKS, POLYGONS), "coco-json", parts=("annotations", "images")),
    "labelme": Layout("LabelMe", _write_label_me, (POLYGONS, MASKS), "labelme", "", ()),
    "yolo": Layout("YOLO-seg", _write_yolo, (POLYGONS,), "yolo", parts=("images", "labels"), lacks=_NEITHER),
    "cvat": Layout("CVAT for images 1.1", _write_cvat, (MASKS, POLYGONS), "cvat"),
    "png": Layout("mask images", _write_masks, (MASKS,), "png", parts=("images", "masks"), lacks=("scores",)),
    "label-studio": Layout("Label Studio", _write_label_studio, (MASKS, POLYGONS), "label-studio"),
}
