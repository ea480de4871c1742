"""The files that the pages name: small data and models, so that a block runs as it is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import tiny_datasets
from chat_models import internlm2_files, train_sentencepiece, with_tokenizer
from datasets import Dataset
from datasets import Image as ImageFeature
from paths import EXAMPLES, ROOT
from PIL import Image
from runs import infer
from skimage import data

from himtok_plugin.data.generated.scenes import generate_scenes, write_mask_rows, write_rows
from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl
from himtok_plugin.masks import load_mask, mask_bbox
from himtok_plugin.resources import default_checkpoint

SCENES = 32  # `himtok calibrate` needs 20 masks
CHECKPOINT = "stage3/last-checkpoint"  # a real folder, because `himtok calibrate` writes into it
LINKS = ("stage1/last-checkpoint", "stage2/last-checkpoint", "CHECKPOINT", "InternVL2_5-HiMTok-8B-hf")


def write_documented_files(root: Path) -> Path:
    _write_images(root)
    _write_rows(root)
    _write_models(root)
    _write_results(root)
    tiny_datasets.write("refcoco", root / "data" / "refer")
    tiny_datasets.write("labelme", root / "my_photos")
    _write_label_maps(root / "street")
    _write_pope(root / "POPE")
    for folder in (ROOT / "swift_configs", EXAMPLES):
        (root / folder.name).symlink_to(folder)
    return root


def _write_images(root: Path) -> None:
    horse = ~data.horse()  # it is drawn black on white
    Image.fromarray(horse).save(root / "mask.png")
    Image.fromarray(np.where(horse[..., None], (90, 60, 30), (120, 160, 90)).astype(np.uint8)).save(root / "photo.jpg")


def _write_rows(root: Path) -> None:
    write_rows(root / "himtok_demo" / "held_out", 8, 2)
    write_rows(root / "scenes", SCENES, 5)
    lines = [json.loads(line) for line in (root / "scenes" / "rows.jsonl").read_text().splitlines()]
    for name in ("rows.jsonl", "mine.jsonl", "reasonseg.jsonl", "rows/refcoco/testA.jsonl"):
        _write_lines(root / name, lines)
    _write_lines(root / "refcoco_val.jsonl", _read_lines(root / "himtok_demo" / "held_out" / "rows.jsonl"))
    _write_lines(root / "rec.jsonl", [_box_row(row) for row in lines if len(row["masks"]) == 1])
    for name in ("masks.jsonl", "held_out.jsonl"):
        write_mask_rows(root / name, 8, 3)


def _write_results(root: Path) -> None:
    infer(root / "rows.jsonl", root / "out.jsonl", model="default", max_batch_size=SCENES)
    for name in ("a.jsonl", "b.jsonl"):
        shutil.copy(root / "out.jsonl", root / name)


def _write_models(root: Path) -> None:
    texts = [turn["content"] for scene in generate_scenes(8, seed=5) for turn in scene.messages]
    build_tiny_internvl(root / "LMM", texts, "nano")
    shutil.copytree(default_checkpoint(), root / CHECKPOINT)
    for name in LINKS:
        (root / name).parent.mkdir(exist_ok=True)
        target = CHECKPOINT if "/" not in name else f"../{CHECKPOINT}"
        (root / name).symlink_to(f"{target}/mask_tokenizer" if name.startswith("stage1") else target)
    files = internlm2_files(train_sentencepiece(root))
    with_tokenizer(files).write(root / "yayafengzi" / "InternVL2_5-HiMTok-8B")


def _write_label_maps(folder: Path) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    shutil.copy(folder.parent / "photo.jpg", folder / "images" / "a.jpg")
    labels = np.asarray(Image.open(folder.parent / "mask.png").convert("L"))
    Image.fromarray(np.where(labels > 0, 2, 1).astype(np.uint8)).save(folder / "masks" / "a.png")
    (folder / "classes.json").write_text('{"road": 1, "car": 2}')


def _write_pope(folder: Path) -> None:
    """POPE as evalscope reads it, with the columns and splits that it has on the hub."""
    folder.mkdir()
    picture = {"bytes": (folder.parent / "photo.jpg").read_bytes(), "path": None}
    splits = ("random", "popular", "adversarial")
    for split in splits:
        texts = {"id": "0", "question_id": "0", "question": "Is there a horse in the image?", "answer": "yes"}
        row = {**texts, "image_source": "x", "image": picture, "category": split}
        table = Dataset.from_list([row]).cast_column("image", ImageFeature())
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    card = {"config_name": "Full", "data_files": [{"split": name, "path": f"{name}-*.parquet"} for name in splits]}
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': [card]})}\n---\n")  # JSON is YAML


def _box_row(row: dict) -> dict:
    box = [float(value) for value in mask_bbox(load_mask(row["masks"][0]))]
    answer = {"role": "assistant", "content": "It is at <bbox>."}
    return {**row, "messages": [row["messages"][0], answer], "masks": [], "objects": {"ref": [], "bbox": [box]}}


def _read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
