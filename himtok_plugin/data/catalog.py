"""The supported datasets: for each its reader, splits and default tasks.

Contract: plain data, so that `himtok --help` and ms-swift's registry can list it without importing a reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .formats.reader import Reader, Source

TRAIN_VAL = ("train", "val")


@dataclass(frozen=True)
class Format:
    """One dataset.

    Attributes:
        name: its name on the command line.
        reader: `module:class` in `formats`.
        about: its line in `--help`.
        splits: the default first; "all" stands for the whole of a dataset.
        tasks: the default tasks.
    """

    name: str
    reader: str
    about: str
    splits: tuple[str, ...] = TRAIN_VAL
    tasks: tuple[str, ...] = ("segment",)

    def reader_class(self) -> type[Reader]:
        module, _, name = self.reader.partition(":")
        return getattr(import_module(f".formats.{module}", __package__), name)


_CLASSES = ("segment_class", "segment_instances")
_ALL = (
    Format("refcoco", "refer:ReferReader", "RefCOCO, REFER files", ("train", "val", "testA", "testB", "test")),
    Format("refcoco+", "refer:ReferReader", "RefCOCO+, REFER files", ("train", "val", "testA", "testB")),
    Format("refcocog", "refer:ReferReader", "RefCOCOg, REFER files", ("train", "val", "test")),
    Format(
        "grefcoco", "refer:GrefReader", "gRefCOCO: none, one or several targets", ("train", "val", "testA", "testB")
    ),
    Format("reasonseg", "reason_seg:ReasonSegReader", "ReasonSeg", ("train", "val", "test")),
    Format("coco", "coco:CocoReader", "COCO instances", tasks=_CLASSES),
    Format("lvis", "coco:LvisReader", "LVIS v1", tasks=_CLASSES),
    Format("paco", "coco:PacoReader", "PACO-LVIS: objects and their parts", ("train", "val", "test"), _CLASSES),
    Format("coco-stuff", "coco:StuffReader", "COCO stuff, its JSON or its PNG", tasks=("segment_class",)),
    Format("coco-panoptic", "panoptic:PanopticReader", "COCO panoptic", tasks=_CLASSES),
    Format("ade20k", "label_maps:AdeReader", "ADE20K, 150 classes (ADEChallengeData2016)", tasks=("segment_class",)),
    Format("voc", "label_maps:VocReader", "Pascal VOC 2012 segmentation", ("train", "val", "trainval"), _CLASSES),
    Format("pascal-context", "label_maps:ContextReader", "Pascal Context", tasks=("segment_class",)),
    Format("cityscapes", "label_maps:CityscapesReader", "Cityscapes, gtFine", ("train", "val"), _CLASSES),
    Format(
        "psalm",
        "psalm:PsalmReader",
        "RefCOCO and others as JSON or Parquet (image_info, anns, instruction)",
        ("train", "val", "testA", "testB", "test"),
    ),
    Format("sa1b", "sa1b:Sa1bReader", "SA-1B, its tar files without unpacking", ("all",), ("masks",)),
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
    Format("yolo", "yolo:YoloReader", "your own YOLO-seg dataset", ("train", "val", "test"), _CLASSES),
    Format("cvat", "cvat:CvatReader", "your own CVAT for images 1.1", ("all", "train", "val", "test"), _CLASSES),
    Format("coco-json", "coco:OwnCocoReader", "your own COCO-JSON", ("all", "train", "val", "test"), _CLASSES),
    Format("png", "png_pairs:PngPairsReader", "your own folders of images and masks", ("all", "train", "val", "test")),
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


def open_reader(source: Source) -> Reader:
    """Create the reader of a dataset, which finds its files.

    Raises:
        ValueError: unknown name or split, or missing files.
    """
    format = find_format(source.name)
    if source.split not in format.splits:
        raise ValueError(f"--split: got {source.split!r}, expected one of {', '.join(format.splits)}")
    return format.reader_class()(source)
