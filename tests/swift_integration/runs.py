"""Runs of ms-swift in this process, and the rows and models that tests share.

A `swift` command costs ten seconds of imports; `sft_main` and `infer_main` are what it calls.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_models import tiny_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from himtok_plugin.data.generated.scenes import generate_scenes, scene_row
from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl
from himtok_plugin.masks import to_rle

COMMON = {
    "tuner_type": "full",
    "torch_dtype": "float32",
    "check_model": False,
    "report_to": "none",
    "dataloader_num_workers": 0,
    "add_version": False,
    "strict": True,
    "logging_steps": 1,
    "save_strategy": "no",
    "eval_strategy": "no",
    "split_dataset_ratio": 0,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0,
    "max_steps": 2,
    "load_from_cache_file": False,
}
LMM = {"freeze_vit": False, "freeze_aligner": False}
FULL_TRAINING_ON_CPUS = {  # by a `swift` command in processes of its own, sharded or not
    **LMM,
    "plugin": "himtok",
    "tuner_type": "full",
    "use_cpu": True,
    "check_model": False,
    "report_to": "none",
    "add_version": False,
    "strict": True,
    "logging_steps": 1,
    "split_dataset_ratio": 0,
    "eval_strategy": "no",
    "load_from_cache_file": False,
    "dataloader_num_workers": 0,
    "gradient_checkpointing": False,
    "attn_impl": "eager",
}
STAGE_TWO = {"mask_loss_weight": 1, "hierarchical_loss_weight": 1}


def flags(**options) -> list[str]:
    """Command line of options; None leaves one out."""
    argv = []
    for name, value in options.items():
        if value is not None:
            values = value if isinstance(value, list | tuple) else [value]
            argv += [f"--{name}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]
    return argv


def sft(**options) -> dict:
    """`swift sft --plugin himtok`: returns ms-swift's result, log_history among it."""
    from swift.pipelines import sft_main

    return sft_main(flags(**{**COMMON, **options}))


def pretrain(**options) -> dict:
    """`swift pt --plugin himtok`."""
    from swift.pipelines import pretrain_main

    return pretrain_main(flags(**{**COMMON, **options}))


def infer(rows: Path, result: Path, **options) -> list[dict]:
    """`swift infer --plugin himtok` on a dataset: returns the result rows."""
    from swift.pipelines import infer_main

    defaults = {
        "val_dataset": rows,
        "result_path": result,
        "max_new_tokens": 48,
        "temperature": 0,
        "stream": False,
        "remove_unused_columns": True,
        "strict": True,
        "load_from_cache_file": False,
        "write_batch_size": 1000,
    }
    infer_main(flags(**{**defaults, **options}))
    return read_rows(result)


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def logged(result: dict, key: str) -> list[float]:
    """The values of one metric in the order in which they were logged."""
    return [float(entry[key]) for entry in result["log_history"] if key in entry]


def run_swift(*argv, cwd: Path, timeout: int = 300, **environment) -> subprocess.CompletedProcess:
    """A real `swift` command, as a user starts it."""
    clean = {name: value for name, value in os.environ.items() if name != "HIMTOK_ACTIVE_PLUGINS"}
    return subprocess.run(
        [Path(sys.executable).with_name("swift"), *map(str, argv)],
        env={**clean, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def untie(lmm: Path, folder: Path) -> Path:
    """A copy of the LMM with untied output embeddings."""
    model = AutoModelForImageTextToText.from_pretrained(lmm)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.01)
    for config in (model.config, model.config.text_config):
        config.tie_word_embeddings = False
    model.save_pretrained(folder)
    AutoProcessor.from_pretrained(lmm).save_pretrained(folder)
    return folder


def export(**options) -> None:
    """`swift export --plugin himtok`."""
    from swift.pipelines import export_main

    export_main(flags(**options))


def mask_of(h: int, w: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((h, w), bool)
    mask[top:bottom, left:right] = True
    return mask


class World:
    """A folder with a mask tokenizer, an LMM, images, masks and rows.

    Images are 48 x 64 (h, w), so that swapped axes show.
    """

    def __init__(self, root: Path):
        self.root = root
        self.mask_tokenizer = root / "mask_tokenizer_tiny"
        model = tiny_model(seed=1)
        model.config.codebook_ready = True
        with torch.no_grad():  # a spread codebook, so that different masks get different codes
            model.quantize.embedding.weight.normal_()
        model.save_pretrained(self.mask_tokenizer)
        scenes = list(generate_scenes(16, seed=5))
        texts = [m["content"] for scene in scenes for m in scene.messages]
        self.lmm = build_tiny_internvl(root / "lmm", texts, "nano")
        images = root / "images"
        images.mkdir()
        rows = []
        for i, scene in enumerate(scenes):
            path = images / f"{i}.png"
            scene.image.save(path)
            rows.append(scene_row(scene, str(path)))
        self.scenes = write_rows(root / "scenes.jsonl", rows)
        self.image = root / "image.png"
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(self.image)
        self.left, self.right = mask_of(48, 64, 8, 40, 4, 20), mask_of(48, 64, 4, 24, 40, 60)
        self.mask_file = root / "left.png"
        Image.fromarray(self.left).save(self.mask_file)
        self.mask_rows = write_rows(root / "masks.jsonl", [{"masks": [mask]} for row in rows for mask in row["masks"]])

    def row(self, *turns: str, masks=(), **columns) -> dict:
        """A row about the image; `turns` alternate, the user's first."""
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        masks = [to_rle(mask) if isinstance(mask, np.ndarray) else mask for mask in masks]
        return {"messages": messages, "images": [str(self.image)], "masks": masks, **columns}

    def segment(self, mask, **columns) -> dict:
        return self.row("<image>Segment it.", "The mask appears at <mask>.", masks=[mask], **columns)
