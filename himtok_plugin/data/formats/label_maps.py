"""Datasets whose annotations are maps of labels: ADE20K, Pascal VOC, Pascal Context, Cityscapes, COCO stuff as PNG.

Contract: one record per image. Where only classes are annotated, a region is all of a class (`stuff`); VOC and
Cityscapes have single objects as well. Pixels without a class are the record's `void`. Does not know prompts and rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from himtok_plugin.data.records import (
    BAD_MASK,
    UNKNOWN_CATEGORY,
    BadEntry,
    LabelMap,
    Record,
    Region,
    SkipLog,
)

from .reader import ImageFinder, Reader, Source, files_below, find_path

VOC_CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow,dining table,dog horse motorbike person,potted plant,"
    "sheep sofa train,tv monitor"
)
VOC_VOID = 255
CONTEXT_CLASSES = (
    "aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair cloth "
    "computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike mountain "
    "mouse person plate platform,potted plant,road rock sheep shelves sidewalk sign sky snow sofa table track train "
    "tree truck,tv monitor,wall water window wood"
)
# The 19 classes of the benchmark, by label id; all others are void there.
CITYSCAPES_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
CITYSCAPES_THINGS = frozenset((24, 25, 26, 27, 28, 31, 32, 33))
STUFF_VOID = 255
STUFF_MAPS = tuple(
    f"{folder}/{{split}}2017"
    for folder in ("stuffthingmaps", "annotations/stuffthingmaps", "cocostuff", "coco_stuff", "annotations")
)
CITYSCAPES_OBJECTS = 1000  # label id * 1000 + number; what is below is no single object


def _names(text: str) -> dict[int, str]:
    """Label -> name, counted from 1; names of two words stand between commas."""
    names = []
    for group in text.split(","):
        names += [group] if group in ("dining table", "potted plant", "tv monitor") else group.split()
    return dict(enumerate(names, 1))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error})") from error


def read_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Labels (h, w) of a PNG, palette indices as they are.

    Raises:
        BadEntry: unreadable, in colours, or of another size than the image.
    """
    try:
        with Image.open(path) as image:
            values = np.asarray(image)
    except Exception as error:  # PIL's readers raise nearly anything on damaged files
        raise BadEntry(BAD_MASK, f"{path}: {error}") from error
    if values.shape != tuple(size):
        raise BadEntry(
            BAD_MASK, f"{path} has shape {values.shape}: expected {tuple(size)}, labels as large as the image"
        )
    return values


def class_regions(
    values: np.ndarray, names: Mapping[int, str], void: Sequence[int], where: str, log: SkipLog
) -> list[Region]:
    """A region for each class of a map."""
    regions = []
    for label in np.unique(values).tolist():
        if label in names:
            regions.append(Region(LabelMap(values, (label,)), names[label], stuff=True, id=names[label]))
        elif label not in void:
            log.skip(UNKNOWN_CATEGORY, f"{where}: got label {label}")
    return regions


class AdeReader(Reader):
    """`images/training`, `annotations/training` and `objectInfo150.txt` of ADEChallengeData2016."""

    folders = {"train": "training", "val": "validation"}

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        part = self.folders[source.split]
        self.maps = self.annotation_file(f"annotations/{part}", f"ADEChallengeData2016/annotations/{part}")
        self.top = self.maps.parent.parent
        self.names = _object_info(find_path(self.top, None, ("objectInfo150.txt",), "objectInfo150.txt"))
        self.finder = ImageFinder(source, (str((self.top / "images" / part).absolute()),))

    def tasks(self, log: SkipLog) -> Sequence[Path]:
        return files_below(self.maps, (".png",))

    def records(self, task: Path, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(f"{task.stem}.jpg")
        values = read_map(task, size)
        regions = class_regions(values, self.names, (0,), str(task), log)
        present = frozenset(region.category for region in regions)
        yield Record(path, size, task.stem, tuple(regions), present=present, void=LabelMap(values, (0,)))


def _object_info(path: Path) -> dict[int, str]:
    """The file's table: index, ratio, train, val, stuff, and synonyms of the name, of which the first one is taken."""
    names = {}
    for number, line in enumerate(_lines(path)[1:], 2):
        fields = [field.strip() for field in line.split("\t")]
        if not line.strip():
            continue
        if len(fields) < 6 or not fields[0].isdigit():
            raise ValueError(f"{path}: line {number} is {line!r:.80}: expected Idx, Ratio, Train, Val, Stuff, Name")
        names[int(fields[0])] = fields[-1].split(",")[0].strip()
    return names


class _VocLayout(Reader):
    """What VOC and Context share: JPEGImages, ImageSets."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        candidates = (f"{top}{name}" for name in self.map_folders for top in self.tops)
        self.maps = self.annotation_file(*candidates)
        self.top = self.maps.parent
        self.finder = ImageFinder(source, (str((self.top / "JPEGImages").absolute()), "JPEGImages"))

    tops: tuple[str, ...] = ("", "VOC2012/", "VOCdevkit/VOC2012/")
    map_folders: tuple[str, ...] = ("SegmentationClass",)
    sets: tuple[str, ...] = ("ImageSets/Segmentation",)

    def tasks(self, log: SkipLog) -> Sequence[str]:
        names = [f"{folder}/{self.source.split}.txt" for folder in self.sets]
        path = find_path(self.top, None, names, "ImageSets")
        return [line.split()[0] for line in _lines(path) if line.strip()]


class VocReader(_VocLayout):
    """`SegmentationClass`, `SegmentationObject`, `ImageSets/Segmentation`, `JPEGImages`."""

    def records(self, task: str, log: SkipLog) -> Iterator[Record]:
        names = _names(VOC_CLASSES)
        path, size = self.finder.find(f"{task}.jpg")
        classes = read_map(self.maps / f"{task}.png", size)
        objects = read_map(self.top / "SegmentationObject" / f"{task}.png", size)
        regions = []
        for number in np.unique(objects).tolist():
            if number in (0, VOC_VOID):
                continue
            label = int(np.bincount(classes[objects == number].ravel()).argmax())
            if label in names:
                regions.append(Region(LabelMap(objects, (number,)), names[label], id=f"{task}/{number}"))
            else:
                log.skip(UNKNOWN_CATEGORY, f"{task}, object {number}: got label {label}")
        present = frozenset(region.category for region in regions)
        yield Record(path, size, task, tuple(regions), present=present, void=LabelMap(classes, (VOC_VOID,)))


class ContextReader(_VocLayout):
    """Pascal Context: 59 classes as PNG (`SegmentationClassContext`), or all as it came (`trainval/*.mat`)."""

    tops = ("", "VOC2010/", "VOCdevkit/VOC2010/")
    map_folders = ("SegmentationClassContext", "trainval")
    sets = ("ImageSets/SegmentationContext", "ImageSets/Main", ".")

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.in_matlab = not next(self.maps.glob("*.png"), None)
        self.names = _names(CONTEXT_CLASSES)
        if self.in_matlab:
            self.names = _labels_txt(find_path(self.top, None, ("labels.txt", "trainval/labels.txt"), "labels.txt"))

    def records(self, task: str, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(f"{task}.jpg")
        if self.in_matlab:
            values = _matlab_map(self.maps / f"{task}.mat", size)
        else:
            values = read_map(self.maps / f"{task}.png", size)
        regions = class_regions(values, self.names, (0, VOC_VOID), task, log)
        present = frozenset(region.category for region in regions)
        yield Record(path, size, task, tuple(regions), present=present, void=LabelMap(values, (0, VOC_VOID)))


def _labels_txt(path: Path) -> dict[int, str]:
    """Lines of "12: bagpipe"."""
    names = {}
    for line in _lines(path):
        number, colon, name = line.partition(":")
        if colon and number.strip().isdigit():
            names[int(number)] = name.strip()
    if not names:
        raise ValueError(f"{path}: holds no line like `12: bagpipe`")
    return names


def _matlab_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    from scipy.io import loadmat

    try:
        values = np.asarray(loadmat(path)["LabelMap"])
    except Exception as error:  # as for images
        raise BadEntry(BAD_MASK, f"{path}: {error}") from error
    if values.shape != tuple(size) or values.dtype.kind not in "iu":
        raise BadEntry(BAD_MASK, f"{path} has {values.dtype} {values.shape}: expected integers {tuple(size)}")
    return values.astype(np.int32)


class CityscapesReader(Reader):
    """`gtFine/<split>/<city>/*_gtFine_instanceIds.png` and `leftImg8bit/<split>/<city>/*_leftImg8bit.png`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.maps = self.annotation_file(f"gtFine/{source.split}", f"cityscapes/gtFine/{source.split}")
        images = self.maps.parent.parent / "leftImg8bit" / source.split
        self.finder = ImageFinder(source, (str(images.absolute()),))

    def tasks(self, log: SkipLog) -> Sequence[Path]:
        return [path for path in files_below(self.maps, (".png",)) if path.name.endswith("_gtFine_instanceIds.png")]

    def records(self, task: Path, log: SkipLog) -> Iterator[Record]:
        name = task.name.removesuffix("_gtFine_instanceIds.png")
        path, size = self.finder.find(f"{task.parent.name}/{name}_leftImg8bit.png")
        values = read_map(task, size)
        regions, void = [], []
        for value in np.unique(values).tolist():
            label = value // CITYSCAPES_OBJECTS if value >= CITYSCAPES_OBJECTS else value
            if label not in CITYSCAPES_CLASSES:
                void.append(value)
                continue
            group = value < CITYSCAPES_OBJECTS
            regions.append(
                Region(
                    LabelMap(values, (value,)),
                    CITYSCAPES_CLASSES[label],
                    crowd=group and label in CITYSCAPES_THINGS,
                    stuff=group and label not in CITYSCAPES_THINGS,
                    id=f"{name}/{value}",
                )
            )
        present = frozenset(region.category for region in regions)
        unknown = LabelMap(values, tuple(void)) if void else None
        yield Record(path, size, name, tuple(regions), present=present, void=unknown)


class StuffMapsReader(Reader):
    """COCO's things and stuff as PNG (`stuffthingmaps_trainval2017.zip`) with `labels.txt` of the dataset's repository.

    A label is one less than the id in `labels.txt`, whose 0 is "unlabeled" and 255 in the maps.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.maps = self.annotation_file(*(name.format(split=source.split) for name in STUFF_MAPS))
        places = (self.maps, self.maps.parent, self.maps.parent.parent, source.root)
        path = next((place / "labels.txt" for place in places if (place / "labels.txt").is_file()), None)
        if path is None:
            expected = "the one of COCO-Stuff's repository (`1: person`, …), which names the labels"
            raise ValueError(f"{source.root}: has {self.maps} and no labels.txt: expected {expected}")
        self.names = {id - 1: name.replace("-", " ") for id, name in _labels_txt(path).items() if id}
        folder = f"{source.split}2017"
        self.finder = ImageFinder(source, (folder, f"images/{folder}", "images", f"../{folder}", f"../images/{folder}"))

    def tasks(self, log: SkipLog) -> Sequence[Path]:
        # mmsegmentation writes maps of its own numbers beside.
        return [path for path in files_below(self.maps, (".png",)) if not path.stem.endswith("_labelTrainIds")]

    def records(self, task: Path, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(f"{task.stem}.jpg")
        values = read_map(task, size)
        regions = class_regions(values, self.names, (STUFF_VOID,), str(task), log)
        present = frozenset(region.category for region in regions)
        yield Record(path, size, task.stem, tuple(regions), present=present, void=LabelMap(values, (STUFF_VOID,)))
