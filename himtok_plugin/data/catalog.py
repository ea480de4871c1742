"""The supported datasets: for each its reader, splits and default tasks.

Contract: plain data, so that `himtok --help` and ms-swift's registry can list it without importing a reader.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING

from himtok_plugin.files import splits as splits_module

if TYPE_CHECKING:
    from .formats.reader import Reader, Source

CROWDS = ("auto", "objects", "groups")  # values of `--crowds`, see `formats.crowds`
TRAIN_VAL = ("train", "val")


@dataclass(frozen=True)
class Format:
    """One dataset.

    Attributes:
        name: its name on the command line.
        reader: `module:class` in `formats`.
        about: its line in `--help`.
        splits: the default first; "all" stands for the whole of a dataset.
        takes: the options that not every format has: "category", "classes", "crowds".
        tasks: the default tasks; empty: the reader chooses those that the annotations can serve.
    """

    name: str
    reader: str
    about: str
    splits: tuple[str, ...] = TRAIN_VAL
    tasks: tuple[str, ...] = ("segment",)
    takes: tuple[str, ...] = ()

    def reader_class(self) -> type[Reader]:
        module, _, name = self.reader.partition(":")
        return getattr(import_module(f".formats.{module}", __package__), name)


def _refer(name: str, about: str, *splits: str, reader: str = "refer:ReferReader") -> Format:
    return Format(name, reader, about, (*TRAIN_VAL, *splits), takes=("crowds",))


_CLASSES = ("segment_class", "segment_instances")
_IN_COCO = ("classes", "crowds")
_ALL = (
    _refer("refcoco", "RefCOCO, REFER files", "testA", "testB", "test"),
    _refer("refcoco+", "RefCOCO+, REFER files", "testA", "testB"),
    _refer("refcocog", "RefCOCOg, REFER files", "test"),
    _refer("grefcoco", "gRefCOCO: none, one or several targets", "testA", "testB", reader="refer:GrefReader"),
    Format("reasonseg", "reason_seg:ReasonSegReader", "ReasonSeg", ("train", "val", "test")),
    Format("coco", "coco:CocoReader", "COCO instances", tasks=_CLASSES, takes=_IN_COCO),
    Format("lvis", "coco:LvisReader", "LVIS v1", tasks=_CLASSES, takes=_IN_COCO),
    Format(
        "paco", "coco:PacoReader", "PACO-LVIS: objects and their parts", ("train", "val", "test"), _CLASSES, _IN_COCO
    ),
    Format(
        "coco-stuff", "coco:StuffReader", "COCO stuff, its JSON or its PNG", tasks=("segment_class",), takes=_IN_COCO
    ),
    Format("coco-panoptic", "panoptic:PanopticReader", "COCO panoptic", tasks=_CLASSES, takes=_IN_COCO),
    Format(
        "ade20k",
        "label_maps:AdeReader",
        "ADE20K, 150 classes (ADEChallengeData2016)",
        tasks=("segment_class",),
        takes=("classes",),
    ),
    Format(
        "voc",
        "label_maps:VocReader",
        "Pascal VOC 2012 segmentation",
        ("train", "val", "trainval"),
        _CLASSES,
        ("classes",),
    ),
    Format(
        "pascal-context", "label_maps:ContextReader", "Pascal Context", tasks=("segment_class",), takes=("classes",)
    ),
    Format("cityscapes", "label_maps:CityscapesReader", "Cityscapes, gtFine", ("train", "val"), _CLASSES, _IN_COCO),
    Format(
        "psalm",
        "psalm:PsalmReader",
        "RefCOCO and others as JSON or Parquet (image_info, anns, instruction)",
        ("train", "val", "testA", "testB", "test"),
    ),
    Format("sa1b", "sa1b:Sa1bReader", "SA-1B, its tar files without unpacking", ("all",), ("masks",), ("category",)),
    Format("grandf", "grandf:GrandfReader", "GranD-f / GLaMM grounded conversations", tasks=("converse",)),
    Format(
        "rec",
        "rec:RecReader",
        "referring boxes, REC jsonl as of Qwen-VL",
        ("train", "val", "testA", "testB", "test"),
        ("ground",),
    ),
    Format("pope", "question_answering:PopeReader", "POPE", ("random", "popular", "adversarial"), ("converse",)),
    Format("vqav2", "question_answering:VqaReader", "VQAv2", tasks=("converse",)),
    Format(
        "mask-perception",
        "question_answering:MaskPerceptionReader",
        "questions about masks: image, question, answer",
        ("all", "train", "val", "test"),
        ("converse",),
    ),
    Format("labelme", "label_me:LabelMeReader", "your own LabelMe folder", ("all", "train", "val", "test"), _CLASSES),
    Format(
        "yolo", "yolo:YoloReader", "your own YOLO-seg dataset", ("all", "train", "val", "test"), _CLASSES, ("classes",)
    ),
    Format("cvat", "cvat:CvatReader", "your own CVAT for images 1.1", ("all", "train", "val", "test"), _CLASSES),
    Format(
        "label-studio",
        "label_studio:LabelStudioReader",
        "your own Label Studio export, JSON",
        ("all", "train", "val", "test"),
        _CLASSES,
    ),
    Format(
        "coco-json", "coco:OwnCocoReader", "your own COCO-JSON", ("all", "train", "val", "test"), _CLASSES, _IN_COCO
    ),
    Format(
        "png",
        "png_pairs:PngPairsReader",
        "your own folders of images and masks",
        ("all", "train", "val", "test"),
        (),
        ("category", "classes"),
    ),
)
FORMATS = {format.name: format for format in _ALL}


def find_format(name: str) -> Format:
    """The dataset of this name.

    Raises:
        ValueError: unknown name.
    """
    if name not in FORMATS:
        raise ValueError(f"dataset: got {name!r}, expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def find_split(name: str, split: str) -> str:
    """The split of a dataset that a name means: `valid`, `Val` and `validation` are `val`.

    Raises:
        ValueError: unknown dataset or split.
    """
    splits = find_format(name).splits
    if (found := splits_module.find_split(split, splits)) is None:
        raise ValueError(f"--split: got {split!r}, expected one of {', '.join(splits)}")
    return found


def _check_options(source: Source, format: Format) -> None:
    """Raise a ValueError for an option that a format would ignore, or that has an unknown value."""
    if source.crowds not in CROWDS:
        raise ValueError(f"--crowds: got {source.crowds!r}, expected one of {', '.join(CROWDS)}")
    given = {"category": source.category, "classes": source.classes, "crowds": source.crowds != CROWDS[0]}
    for option, value in given.items():
        if value and option not in format.takes:
            known = ", ".join(other.name for other in FORMATS.values() if option in other.takes)
            raise ValueError(f"--{option}: got one for {source.name}, which has no use for it, expected {known}")


def open_reader(source: Source) -> Reader:
    """Create the reader of a dataset, which finds its files.

    The split "all" of a dataset whose splits lie in files or folders of their own is all of these.

    Raises:
        ValueError: unknown name or split, or missing files.
    """
    source = replace(source, split=find_split(source.name, source.split))
    format = find_format(source.name)
    _check_options(source, format)
    reader_class = format.reader_class()
    if source.split in format.splits[1:] or source.annotations is not None or "all" not in format.splits:
        return reader_class(source)
    joined = import_module(".formats.joined_reader", __package__)
    return joined.open_all_splits(reader_class, source, format.splits)
