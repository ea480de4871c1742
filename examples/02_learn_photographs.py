"""Train a mask tokenizer and a tiny LMM on four photographs, until the LMM segments them.

    python examples/02_learn_photographs.py [ROWS.jsonl] [--root DIR] [--output DIR]

Shows all steps from data in the reference's format to scores: stage 1, stage 2, `swift infer` and `himtok eval`, each
run as a command that a user would type. The LMM memorizes these photographs and knows no others. Takes 6 to 10 minutes
on 2 cores.

ROWS.jsonl has the fields `image`, `mask` and `conversations` with 32 placeholder tokens, like the authors' data;
relative paths start at --root. By default the photographs are four of scikit-image, with masks by thresholding.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data, filters

from himtok_plugin import MaskTokenizer, load_mask
from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl
from himtok_plugin.mask_text import MASK_END, MASK_START, mask_token
from himtok_plugin.metrics.reconstruction import reconstruction_scores
from himtok_plugin.resources import config_path

PICTURES = ("coins", "coffee", "chelsea", "rocket")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="?", type=Path)
    parser.add_argument("--root", type=Path, help="folder of relative paths; default: that of ROWS.jsonl")
    parser.add_argument("--output", type=Path, default=Path("photographs"))
    parser.add_argument("--steps", type=int, nargs=2, default=(600, 500), help="steps of stage 1 and of stage 2")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    rows = arguments.rows.resolve() if arguments.rows else write_scikit_image_rows(output)
    root = (arguments.root or rows.parent).resolve()
    os.environ["ROOT_IMAGE_DIR"] = str(root)  # ms-swift's variable, used for images and masks

    entries = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    masks_only = output / "masks.jsonl"
    masks_only.write_text("".join(json.dumps({"masks": [entry["mask"]]}) + "\n" for entry in entries * 16))
    steps_one, steps_two = map(str, arguments.steps)

    run_command("himtok_plugin.cli", "init", "--size", "tiny", "--force", output / "untrained")
    run_command(
        *("swift.cli.main", "sft", config_path("stage1_tiny_full"), "--model", output / "untrained"),
        *("--dataset", masks_only, "--max_steps", steps_one, "--save_steps", steps_one, "--continuous_warmup_steps"),
        *(str(int(steps_one) // 3), "--per_device_train_batch_size", "16", "--eval_strategy", "no"),
        *("--output_dir", output / "stage1"),
    )
    tokenizer = output / "stage1" / f"checkpoint-{steps_one}"
    texts = [turn["value"] for entry in entries for turn in entry["conversations"]]
    build_tiny_internvl(output / "lmm", texts, "demo")
    run_command(
        *("swift.cli.main", "sft", config_path("stage2_tiny_full"), "--model", output / "lmm"),
        *("--mask_tokenizer", tokenizer, "--dataset", rows, "--max_steps", steps_two, "--save_steps", steps_two),
        *("--per_device_train_batch_size", "4", "--eval_strategy", "no", "--dataloader_num_workers", "0"),
        *("--output_dir", output / "stage2"),
    )
    checkpoint = output / "stage2" / f"checkpoint-{steps_two}"
    result = output / "out.jsonl"
    result.unlink(missing_ok=True)
    run_command(
        *("swift.cli.main", "infer", "--plugin", "himtok", "--model", checkpoint, "--val_dataset", rows),
        *("--result_path", result, "--mask_dir", output / "pictures", "--max_new_tokens", "64"),
        *("--temperature", "0", "--stream", "false"),
    )
    masks = [load_mask(root / entry["mask"]) for entry in entries]
    for name, folder in (("stage 1", tokenizer), ("stage 2", checkpoint)):
        scores = reconstruction_scores(MaskTokenizer.from_pretrained(folder), masks)
        print(
            f"ceiling of the {name} tokenizer, gIoU by tokens:",
            {n: round(score["gIoU"], 3) for n, score in scores.items()},
        )
    run_command("himtok_plugin.cli", "eval", result, "--root", root)
    print("predicted masks are in", output / "pictures")


def run_command(module: str, *arguments: object) -> None:
    """Run a command as a user would type it, with this interpreter."""
    program = "from himtok_plugin.cli import main; main()" if module == "himtok_plugin.cli" else None
    start = [sys.executable, "-c", program] if program else [sys.executable, "-m", module]
    subprocess.run([*start, *map(str, arguments)], check=True)


def write_scikit_image_rows(folder: Path) -> Path:
    """Write four photographs with masks by Otsu's threshold, in the reference's format; return the rows' file."""
    placeholder = MASK_START + mask_token(0) * 32 + MASK_END
    lines = []
    for name in PICTURES:
        picture = getattr(data, name)()
        grey = picture if picture.ndim == 2 else picture[..., :3].mean(axis=-1)
        mask = filters.gaussian(grey, 5) > filters.threshold_otsu(filters.gaussian(grey, 5))
        Image.fromarray(picture).convert("RGB").save(folder / f"{name}.jpg")
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}.png")
        turns = [
            {"from": "human", "value": f"<image>\nSegment <ref>{name}</ref>."},
            {"from": "gpt", "value": f"The mask appears at {placeholder}."},
        ]
        lines.append(json.dumps({"image": f"{name}.jpg", "mask": f"{name}.png", "conversations": turns}) + "\n")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(lines), encoding="utf-8")
    return rows


if __name__ == "__main__":
    main()
