"""Writes a tiny, valid version of every dataset of the catalog: two images each.

`write(name, root)` returns the paths of its images and annotation files. Every text and name in them contains THING, so
that tests can damage it.
"""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from himtok_plugin.data.catalog import FORMATS

SIZE = (40, 56)
H, W = SIZE
THING, OTHER = "thingy", "sky"
POLYGONS = ([8.0, 5.0, 40.0, 8.5, 30.0, 33.0], [20.0, 4.0, 50.0, 6.0, 44.0, 36.0, 15.5, 30.0])
BOXES = ([8.0, 5.0, 40.0, 33.0], [15.5, 4.0, 50.0, 36.0])


@dataclass
class Tiny:
    """A dataset on disk.

    Attributes:
        root: its folder.
        images: its two images.
        annotations: all other files.
    """

    root: Path
    images: list[Path] = field(default_factory=list)

    @property
    def annotations(self) -> list[Path]:
        return [path for path in sorted(self.root.rglob("*")) if path.is_file() and path not in self.images]

    def image(self, name: str) -> str:
        """Write an image and return its base name."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(self.images)).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        self.images.append(path)
        return path.name

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def json(self, name: str, content) -> Path:
        return self.file(name, json.dumps(content))

    def lines(self, name: str, entries) -> Path:
        return self.file(name, "".join(json.dumps(entry) + "\n" for entry in entries))

    def map(self, name: str, values: np.ndarray) -> Path:
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "PNG")
        return self.file(name, stream.getvalue())


def write(name: str, root: Path) -> Tiny:
    """Write the dataset of this name below `root`."""
    tiny = Tiny(root)
    WRITERS[name](tiny)
    return tiny


def rle(i: int) -> dict:
    (found,) = coco.frPyObjects([POLYGONS[i]], H, W)
    return {"size": [H, W], "counts": found["counts"].decode()}


def labels(*values: int) -> np.ndarray:
    """A label map of vertical stripes."""
    made = np.zeros(SIZE, np.uint8)
    for i, value in enumerate(values):
        made[:, i * W // len(values) : (i + 1) * W // len(values)] = value
    return made


def coco_layout(names, categories=(THING, OTHER), **of_images) -> dict:
    images = [{"id": i, "file_name": name, "height": H, "width": W, **of_images} for i, name in enumerate(names, 1)]
    annotations = []
    for i in (0, 1):
        x1, y1, x2, y2 = BOXES[i]
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": i + 1, "segmentation": [POLYGONS[i]],
                            "bbox": [x1, y1, x2 - x1, y2 - y1], "area": 300.0, "iscrowd": 0})  # fmt: skip
    classes = [{"id": i, "name": name, "supercategory": "x"} for i, name in enumerate(categories, 1)]
    return {"images": images, "annotations": annotations, "categories": classes}


def _coco(annotations: str, folder: str, file_name: str = "", **more) -> Callable[[Tiny], None]:
    def made(tiny: Tiny) -> None:
        names = [tiny.image(f"{folder}/{i:012}.jpg") for i in (1, 2)]
        tiny.json(annotations, coco_layout([file_name + name for name in names], **more))

    return made


def _refer(folder: str, file: str) -> Callable[[Tiny], None]:
    def made(tiny: Tiny) -> None:
        names = [tiny.image(f"train2014/COCO_train2014_{i:012}.jpg") for i in (1, 2)]
        tiny.json(f"{folder}/instances.json", coco_layout(names))
        refs = []
        for i in (1, 2):
            sentences = [{"tokens": [THING, str(i)], "raw": f"{THING} {i}", "sent_id": i, "sent": f"{THING} {i}"}]
            ann_id = [i] if file.endswith(".json") else i
            refs.append({"ref_id": i, "ann_id": ann_id, "image_id": i, "split": "train", "sentences": sentences,
                         "file_name": names[i - 1], "category_id": i})  # fmt: skip
        tiny.file(f"{folder}/{file}", json.dumps(refs) if file.endswith(".json") else pickle.dumps(refs, 2))

    return made


def _psalm(tiny: Tiny) -> None:
    entries = []
    for i in (1, 2):
        info = {"id": i, "file_name": tiny.image(f"train2014/{i}.jpg"), "height": H, "width": W}
        anns = [{"id": i, "segmentation": [POLYGONS[i - 1]], "category_id": 1}]
        entries.append({"image_info": info, "anns": anns, "instruction": [{"sent": f"{THING} {i}"}], "new_img_id": i})
    tiny.json("refcoco_train.json", entries)


def _reasonseg(tiny: Tiny) -> None:
    for i in (1, 2):
        tiny.image(f"train/{i}.jpg")
        shapes = [{"label": "target", "points": np.reshape(POLYGONS[i - 1], (-1, 2)).tolist()}]
        tiny.json(f"train/{i}.json", {"text": [f"Where is the {THING}?"], "is_sentence": True, "shapes": shapes})


def _panoptic(tiny: Tiny) -> None:
    names = [tiny.image(f"train2017/{i:012}.jpg") for i in (1, 2)]
    content = coco_layout(names)
    content["annotations"] = []
    for i, name in enumerate(names, 1):
        numbers = labels(0, 7, 9)
        tiny.map(f"annotations/panoptic_train2017/{Path(name).stem}.png", np.stack([numbers] + [numbers * 0] * 2, 2))
        segments = [{"id": 7, "category_id": 1, "iscrowd": 0}, {"id": 9, "category_id": 2, "iscrowd": 0}]
        annotation = {"image_id": i, "file_name": f"{Path(name).stem}.png", "segments_info": segments}
        content["annotations"].append(annotation)
    tiny.json("annotations/panoptic_train2017.json", content)


def _ade20k(tiny: Tiny) -> None:
    for i in (1, 2):
        tiny.image(f"images/training/ADE_train_{i:08}.jpg")
        tiny.map(f"annotations/training/ADE_train_{i:08}.png", labels(0, 1, 2))
    table = f"Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t1\t1\t1\t{THING}\n2\t0.1\t1\t1\t1\t{OTHER}, sky above\n"
    tiny.file("objectInfo150.txt", table)


def _voc(tiny: Tiny) -> None:
    for name in ("a", "b"):
        tiny.image(f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg")
        tiny.map(f"VOCdevkit/VOC2012/SegmentationClass/{name}.png", labels(0, 15, 255))
        tiny.map(f"VOCdevkit/VOC2012/SegmentationObject/{name}.png", labels(0, 1, 255))
    tiny.file("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", "a\nb\n")


def _context(tiny: Tiny) -> None:
    for name in ("a", "b"):
        tiny.image(f"JPEGImages/{name}.jpg")
        tiny.map(f"SegmentationClassContext/{name}.png", labels(0, 22, 59))
    tiny.file("ImageSets/SegmentationContext/train.txt", "a\nb\n")


def _cityscapes(tiny: Tiny) -> None:
    for i in (1, 2):
        tiny.image(f"leftImg8bit/train/aachen/aachen_{i}_leftImg8bit.png")
        numbers = labels(0, 7, 24).astype(np.uint16)
        numbers[numbers == 24] = 24000
        tiny.map(f"gtFine/train/aachen/aachen_{i}_gtFine_instanceIds.png", numbers)


def _sa1b(tiny: Tiny) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for i in (1, 2):
            image = {"image_id": i, "width": W, "height": H, "file_name": f"sa_{i}.jpg"}
            content = {"image": image, "annotations": [{"id": i, "segmentation": rle(i - 1), "bbox": [8, 5, 9, 9]}]}
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(f"./sa_{i}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    tiny.file("sa_000000.tar", stream.getvalue())


def _grandf(tiny: Tiny) -> None:
    entries = []
    for i in (1, 2):
        grounding = {THING: {"token_positives": None, "rle_masks": [rle(i - 1)]}}
        entries.append({"file_name": tiny.image(f"GranDf_HA_images/train/{i}.jpg"), "image_id": i,
                        "caption": f"There is a {THING} here.", "groundings": grounding})  # fmt: skip
    tiny.json("GranDf_HA_GCG_train.json", entries)


def _rec(tiny: Tiny) -> None:
    entries = [{"image": tiny.image(f"{i}.jpg"), "sent": THING, "bbox": BOXES[i], "height": H, "width": W}
               for i in (0, 1)]  # fmt: skip
    tiny.lines("refcoco_train.jsonl", entries)


def _pope(tiny: Tiny) -> None:
    names = [tiny.image(f"val2014/COCO_val2014_{i:012}.jpg") for i in (1, 2)]
    entries = [{"question_id": i, "image": name, "text": f"Is there a {THING} in the image?", "label": "yes"}
               for i, name in enumerate(names)]  # fmt: skip
    tiny.lines("coco_pope_random.json", entries)


def _vqav2(tiny: Tiny) -> None:
    questions, answers = [], []
    for i in (1, 2):
        tiny.image(f"train2014/COCO_train2014_{i:012}.jpg")
        questions.append({"image_id": i, "question": f"What is the {THING}?", "question_id": i * 1000})
        answers.append({"image_id": i, "question_id": i * 1000, "multiple_choice_answer": "red", "answers": []})
    tiny.json("v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    tiny.json("v2_mscoco_train2014_annotations.json", {"annotations": answers})


def _mask_perception(tiny: Tiny) -> None:
    entries = [{"image": tiny.image(f"images/{i}.jpg"), "question": f"Is it a {THING}?", "answer": "yes",
                "mask": rle(i)} for i in (0, 1)]  # fmt: skip
    tiny.lines("perception.jsonl", entries)


def _labelme(tiny: Tiny) -> None:
    for i in (0, 1):
        shape = {"label": THING, "points": np.reshape(POLYGONS[i], (-1, 2)).tolist(), "shape_type": "polygon"}
        content = {"shapes": [shape], "imagePath": tiny.image(f"{i}.png"), "imageHeight": H, "imageWidth": W}
        tiny.json(f"{i}.json", content)


def _yolo(tiny: Tiny) -> None:
    for i in (0, 1):
        tiny.image(f"images/train/{i}.png")
        flat = (np.reshape(POLYGONS[i], (-1, 2)) / (W, H)).ravel()
        tiny.file(f"labels/train/{i}.txt", "0 " + " ".join(f"{v:.6f}" for v in flat) + "\n")
    tiny.file("data.yaml", f"train: images/train\nnames: [{THING}]\n")


def _cvat(tiny: Tiny) -> None:
    images = ""
    for i in (0, 1):
        points = ";".join(f"{x},{y}" for x, y in np.reshape(POLYGONS[i], (-1, 2)))
        images += f'<image id="{i}" name="{tiny.image(f"images/{i}.png")}" width="{W}" height="{H}">'
        images += f'<polygon label="{THING}" points="{points}"/></image>'
    tiny.file("annotations.xml", f'<?xml version="1.0" encoding="utf-8"?><annotations>{images}</annotations>')


def _png(tiny: Tiny) -> None:
    for i in (0, 1):
        tiny.image(f"images/{i}.jpg")
        mask = coco.decode(rle(i)) * 255
        tiny.map(f"masks/{i}.png", mask)
    tiny.json("expressions.json", {str(i): [f"the {THING}"] for i in (0, 1)})


def _label_studio(tiny: Tiny) -> None:
    tasks = []
    for i in (0, 1):
        points = (np.reshape(POLYGONS[i], (-1, 2)) * (100 / W, 100 / H)).tolist()
        region = {"id": "r", "type": "polygonlabels", "value": {"points": points, "polygonlabels": [THING]}}
        region |= {"original_width": W, "original_height": H}
        data = {"image": f"/data/local-files/?d={tiny.image(f'images/{i}.png')}"}
        tasks.append({"id": i, "data": data, "annotations": [{"result": [region]}]})
    tiny.json("tasks.json", tasks)


WRITERS: dict[str, Callable[[Tiny], None]] = {
    "refcoco": _refer("refcoco", "refs(unc).p"),
    "refcoco+": _refer("refcoco+", "refs(unc).p"),
    "refcocog": _refer("refcocog", "refs(umd).p"),
    "grefcoco": _refer("grefcoco", "grefs(unc).json"),
    "reasonseg": _reasonseg,
    "coco": _coco("annotations/instances_train2017.json", "train2017"),
    "lvis": _coco("lvis_v1_train.json", "train2017", "train2017/", neg_category_ids=[]),
    "paco": _coco("paco_lvis_v1_train.json", "train2017", "train2017/", categories=(THING, f"{THING}:handle")),
    "coco-stuff": _coco("annotations/stuff_train2017.json", "train2017"),
    "coco-panoptic": _panoptic,
    "ade20k": _ade20k,
    "voc": _voc,
    "pascal-context": _context,
    "cityscapes": _cityscapes,
    "psalm": _psalm,
    "sa1b": _sa1b,
    "grandf": _grandf,
    "rec": _rec,
    "pope": _pope,
    "vqav2": _vqav2,
    "mask-perception": _mask_perception,
    "labelme": _labelme,
    "yolo": _yolo,
    "cvat": _cvat,
    "coco-json": _coco("annotations.json", "images"),
    "png": _png,
    "label-studio": _label_studio,
}
assert set(WRITERS) == set(FORMATS)
