"""Datasets whose annotations are label maps: ADE20K, Pascal VOC, Pascal Context, Cityscapes, COCO stuff as PNG.

Contract: one record per image. If only classes are annotated, a region is everything of one class (`stuff`); VOC and
Cityscapes also have single objects. Unlabelled pixels are the record's `void`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from himtok_plugin.data.class_maps import VOID_VALUE
from himtok_plugin.data.records import LabelMap, Record, Region, class_names, explain_other_size
from himtok_plugin.data.skip_log import BAD_MASK, UNKNOWN_CATEGORY, AnnotationError, SkipLog
from himtok_plugin.files.images import make_upright
from himtok_plugin.files.text import read_text

from .image_finder import ImageFinder
from .reader import Reader, Source, find_path, list_files

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
# The 19 classes of the benchmark, by label id; all others are void.
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
CITYSCAPES_OBJECTS = 1000  # an object's value is label id * 1000 + number; smaller values are not single objects


def _parse_class_names(text: str) -> dict[int, str]:
    """Label -> name, counted from 1; names of two words are separated by commas."""
    names = []
    for group in text.split(","):
        names += [group] if group in ("dining table", "potted plant", "tv monitor") else group.split()
    return dict(enumerate(names, 1))


def _read_lines(path: Path) -> list[str]:
    return read_text(path).splitlines()


def read_label_map(path: Path, size: tuple[int, int], colours: bool = False) -> np.ndarray:
    """The labels of a PNG: (h, w), palette indices unchanged.

    Args:
        colours: whether labels are colours, as in `class_maps`; of grey pixels, the label is the grey value.
    Raises:
        AnnotationError: unreadable, an RGB image without `colours`, or of another size than the image.
    """
    try:
        with Image.open(path) as opened:
            image = make_upright(opened)
            values = np.asarray(image.convert("RGB") if colours and image.mode in ("P", "RGBA", "RGB") else image)
    except Exception as error:  # PIL's readers raise nearly anything on damaged files
        raise AnnotationError(BAD_MASK, f"{path}: {error}") from error
    if values.shape[:2] != tuple(size):
        raise AnnotationError(BAD_MASK, f"{path} has {explain_other_size(values.shape[:2], size)}")
    if values.ndim == 3 and not colours:
        if not (values.shape[2] == 2 or (values[..., :1] == values[..., :3]).all()):
            raise AnnotationError(
                BAD_MASK,
                f"{path} has colours: expected one label per pixel, or --classes with the colour of each class",
            )
        values = values[..., 0]  # grey values, saved as a colour image or with an alpha channel
    elif values.ndim == 3:
        values = values.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.int32)
    return values


def class_regions(
    values: np.ndarray, names: Mapping[int, str], void: Sequence[int], where: str, log: SkipLog
) -> list[Region]:
    """A region for each class of a label map; labels that are neither a class nor void are logged."""
    regions = []
    for label in np.unique(values).tolist():
        if label in names:
            regions.append(Region(LabelMap(values, (label,)), names[label], stuff=True, id=names[label]))
        elif label not in void:
            log.add(UNKNOWN_CATEGORY, f"{where}: got label {label}")
    return regions


class AdeReader(Reader):
    """`images/training`, `annotations/training` and `objectInfo150.txt` of ADEChallengeData2016."""

    folders = {"train": "training", "val": "validation"}

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        part = self.folders[source.split]
        self.maps = self.annotation_file(f"annotations/{part}", f"ADEChallengeData2016/annotations/{part}")
        self.top = self.maps.parent.parent
        self.names = source.classes or _read_object_info(
            find_path(self.top, None, ("objectInfo150.txt",), "objectInfo150.txt")
        )
        self.finder = ImageFinder(source, (str((self.top / "images" / part).absolute()),))

    def list_items(self, log: SkipLog) -> Sequence[Path]:
        return list_files(self.maps, (".png",), log)

    def read_records(self, item: Path, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(f"{item.stem}.jpg", any_suffix=True)
        values = read_label_map(item, size)
        regions = class_regions(values, self.names, (0,), str(item), log)
        present = class_names(regions)
        yield Record(path, size, item.stem, tuple(regions), present=present, void=LabelMap(values, (0,)))


def _read_object_info(path: Path) -> dict[int, str]:
    """Label -> name from a table of index, ratio, train, val, stuff and names, of which the first one is used."""
    names = {}
    for number, line in enumerate(_read_lines(path)[1:], 2):
        fields = [field.strip() for field in line.split("\t")]
        if not line.strip():
            continue
        if len(fields) < 6 or not fields[0].isdigit():
            raise ValueError(f"{path}: line {number} is {line!r:.80}: expected Idx, Ratio, Train, Val, Stuff, Name")
        names[int(fields[0])] = fields[-1].split(",")[0].strip()
    return names


class _VocLayout(Reader):
    """The common layout of VOC and Context: JPEGImages, ImageSets."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        candidates = (f"{top}{name}" for name in self.map_folders for top in self.tops)
        self.maps = self.annotation_file(*candidates)
        self.top = self.maps.parent
        self.finder = ImageFinder(source, (str((self.top / "JPEGImages").absolute()), "JPEGImages"))

    tops: tuple[str, ...] = ("", "VOC2012/", "VOCdevkit/VOC2012/")
    map_folders: tuple[str, ...] = ("SegmentationClass",)
    sets: tuple[str, ...] = ("ImageSets/Segmentation",)

    def list_items(self, log: SkipLog) -> Sequence[str]:
        names = [f"{folder}/{self.source.split}.txt" for folder in self.sets]
        path = find_path(self.top, None, names, "ImageSets")
        return [line.split()[0] for line in _read_lines(path) if line.strip()]


class VocReader(_VocLayout):
    """`SegmentationClass`, `SegmentationObject`, `ImageSets/Segmentation`, `JPEGImages`."""

    def read_records(self, item: str, log: SkipLog) -> Iterator[Record]:
        names = self.source.classes or _parse_class_names(VOC_CLASSES)
        path, size = self.finder.find(f"{item}.jpg", any_suffix=True)
        colours = max(names) > VOID_VALUE
        classes = read_label_map(self.maps / f"{item}.png", size, colours)
        objects = read_label_map(self.top / "SegmentationObject" / f"{item}.png", size, colours)
        regions = []
        for number in np.unique(objects).tolist():
            if number in (0, VOC_VOID):
                continue
            label = int(np.bincount(classes[objects == number].ravel()).argmax())
            if label in names:
                regions.append(Region(LabelMap(objects, (number,)), names[label], id=f"{item}/{number}"))
            else:
                log.add(UNKNOWN_CATEGORY, f"{item}, object {number}: got label {label}")
        present = class_names(regions)
        yield Record(path, size, item, tuple(regions), present=present, void=LabelMap(classes, (VOC_VOID,)))


class ContextReader(_VocLayout):
    """Pascal Context: 59 classes as PNG (`SegmentationClassContext`), or all classes (`trainval/*.mat`)."""

    tops = ("", "VOC2010/", "VOCdevkit/VOC2010/")
    map_folders = ("SegmentationClassContext", "trainval")
    sets = ("ImageSets/SegmentationContext", "ImageSets/Main", ".")

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.in_matlab = not next(self.maps.glob("*.png"), None)
        self.names = source.classes or _parse_class_names(CONTEXT_CLASSES)
        if self.in_matlab and not source.classes:
            self.names = _read_labels_txt(
                find_path(self.top, None, ("labels.txt", "trainval/labels.txt"), "labels.txt")
            )

    def read_records(self, item: str, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(f"{item}.jpg", any_suffix=True)
        if self.in_matlab:
            values = _read_matlab_map(self.maps / f"{item}.mat", size)
        else:
            values = read_label_map(self.maps / f"{item}.png", size)
        regions = class_regions(values, self.names, (0, VOC_VOID), item, log)
        present = class_names(regions)
        yield Record(path, size, item, tuple(regions), present=present, void=LabelMap(values, (0, VOC_VOID)))


def _read_labels_txt(path: Path) -> dict[int, str]:
    """Lines of "12: bagpipe"."""
    names = {}
    for line in _read_lines(path):
        number, colon, name = line.partition(":")
        if colon and number.strip().isdigit():
            names[int(number)] = name.strip()
    if not names:
        raise ValueError(f"{path}: has no line like `12: bagpipe`")
    return names


def _read_matlab_map(path: Path, size: tuple[int, int]) -> np.ndarray:
    from scipy.io import loadmat

    try:
        values = np.asarray(loadmat(path)["LabelMap"])
    except Exception as error:  # scipy raises nearly anything on damaged files
        raise AnnotationError(BAD_MASK, f"{path}: {error}") from error
    if values.shape != tuple(size) or values.dtype.kind not in "iu":
        raise AnnotationError(BAD_MASK, f"{path} has {values.dtype} {values.shape}: expected integers {tuple(size)}")
    return values.astype(np.int32)


class CityscapesReader(Reader):
    """`gtFine/<split>/<city>/*_gtFine_instanceIds.png` and `leftImg8bit/<split>/<city>/*_leftImg8bit.png`."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.maps = self.annotation_file(f"gtFine/{source.split}", f"cityscapes/gtFine/{source.split}")
        images = self.maps.parent.parent / "leftImg8bit" / source.split
        self.finder = ImageFinder(source, (str(images.absolute()),))

    def list_items(self, log: SkipLog) -> Sequence[Path]:
        return [path for path in list_files(self.maps, (".png",), log) if path.name.endswith("_gtFine_instanceIds.png")]

    def read_records(self, item: Path, log: SkipLog) -> Iterator[Record]:
        name = item.name.removesuffix("_gtFine_instanceIds.png")
        path, size = self.finder.find(f"{item.parent.name}/{name}_leftImg8bit.png", any_suffix=True)
        values = read_label_map(item, size)
        regions, void = [], []
        names = self.source.classes or CITYSCAPES_CLASSES
        for value in np.unique(values).tolist():
            label = value // CITYSCAPES_OBJECTS if value >= CITYSCAPES_OBJECTS else value
            if label not in names:
                void.append(value)
                continue
            group = value < CITYSCAPES_OBJECTS
            regions.append(
                Region(
                    LabelMap(values, (value,)),
                    names[label],
                    crowd=group and label in CITYSCAPES_THINGS and self.source.crowds != "objects",
                    stuff=group and label not in CITYSCAPES_THINGS,
                    id=f"{name}/{value}",
                )
            )
        present = class_names(regions)
        unknown = LabelMap(values, tuple(void)) if void else None
        yield Record(path, size, name, tuple(regions), present=present, void=unknown)


class StuffMapsReader(Reader):
    """COCO's things and stuff as PNG (`stuffthingmaps_trainval2017.zip`) with `labels.txt` of the dataset's repository.

    A label is the id in `labels.txt` minus one; id 0, "unlabeled", is label 255.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.maps = self.annotation_file(*(name.format(split=source.split) for name in STUFF_MAPS))
        places = (self.maps, self.maps.parent, self.maps.parent.parent, source.root)
        path = next((place / "labels.txt" for place in places if (place / "labels.txt").is_file()), None)
        if source.classes:
            self.names = source.classes
        elif path is None:
            expected = "the file from COCO-Stuff's repository with the names of the labels (`1: person`, …)"
            raise ValueError(f"{source.root}: has {self.maps} and no labels.txt: expected {expected}, or --classes")
        else:
            self.names = {id - 1: name.replace("-", " ") for id, name in _read_labels_txt(path).items() if id}
        folder = f"{source.split}2017"
        self.finder = ImageFinder(source, (folder, f"images/{folder}", "images", f"../{folder}", f"../images/{folder}"))

    def list_items(self, log: SkipLog) -> Sequence[Path]:
        # mmsegmentation writes maps with its own labels beside these.
        return [path for path in list_files(self.maps, (".png",), log) if not path.stem.endswith("_labelTrainIds")]

    def read_records(self, item: Path, log: SkipLog) -> Iterator[Record]:
        path, size = self.finder.find(f"{item.stem}.jpg", any_suffix=True)
        values = read_label_map(item, size)
        regions = class_regions(values, self.names, (STUFF_VOID,), str(item), log)
        present = class_names(regions)
        yield Record(path, size, item.stem, tuple(regions), present=present, void=LabelMap(values, (STUFF_VOID,)))
