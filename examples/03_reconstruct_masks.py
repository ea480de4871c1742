"""Train a mask tokenizer on your own masks and measure it on images that it was not trained on.

    python examples/03_reconstruct_masks.py [MASKS.jsonl] [--output DIR] [--steps N] [--start default]

Shows how stage 1 works with few masks. A tokenizer memorizes a few hundred masks, so every mask is moved and scaled 60
times, and generated shapes are added. Takes about 10 minutes on 2 cores.

MASKS.jsonl holds one `{"image_id": …, "segmentation": COCO RLE}` per line, as in COCO's annotations. Every fifth image
is held out. Without a file, the tokenizer is trained and measured on generated shapes.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from himtok_plugin import MaskTokenizer, load_mask
from himtok_plugin.data.generated.scenes import generate_masks
from himtok_plugin.masks import to_rle
from himtok_plugin.metrics.reconstruction import reconstruction_scores
from himtok_plugin.resources import config_path

HELD_OUT_EVERY = 5
GENERATED = 8000
VARIANTS = 60  # of every real mask
SCALES = (0.5, 2.0)
MIN_VISIBLE = 0.5  # share of a variant's area that has to lie inside the image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masks", nargs="?", type=Path)
    parser.add_argument("--output", type=Path, default=Path("reconstruction"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--start", metavar="DIR", help="train this tokenizer further (`default`: the shipped one)")
    parser.add_argument("--size", default="tiny")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="configuration fields of a new tokenizer"
    )
    arguments = parser.parse_args()
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)

    generated = [to_rle(mask) for mask in generate_masks(GENERATED, seed=1)]
    if arguments.masks:
        entries = [json.loads(line) for line in arguments.masks.read_text(encoding="utf-8").splitlines()]
        images = sorted({entry["image_id"] for entry in entries})
        unseen = set(images[::HELD_OUT_EVERY])
        train = [load_mask(entry["segmentation"]) for entry in entries if entry["image_id"] not in unseen]
        held_out = [load_mask(entry["segmentation"]) for entry in entries if entry["image_id"] in unseen]
        print(f"{len(train)} masks to train on, {len(held_out)} of {len(unseen)} held-out images to measure on")
    else:
        train, held_out = [], list(generate_masks(200, seed=2))
    rows = output / "masks.jsonl"
    rng = np.random.default_rng(1)
    variants = [to_rle(draw_variant(mask, rng)) for mask in train for _ in range(VARIANTS)]
    rows.write_text("".join(json.dumps({"masks": [mask]}) + "\n" for mask in variants + generated))

    start = output / "untrained"
    if arguments.start:
        start.parent.mkdir(parents=True, exist_ok=True)
        MaskTokenizer.from_pretrained(arguments.start).save_pretrained(start)
    else:
        init_tokenizer(arguments, start)
    run_python(
        *("-m", "swift.cli.main", "sft", config_path("stage1_tiny_full"), "--model", start),
        *("--dataset", rows, "--max_steps", arguments.steps, "--save_steps", arguments.steps, "--eval_strategy", "no"),
        *("--continuous_warmup_steps", arguments.steps // 3),
        *("--output_dir", output / "stage1"),
    )
    tokenizer = MaskTokenizer.from_pretrained(output / "stage1" / f"checkpoint-{arguments.steps}")
    for n, scores in reconstruction_scores(tokenizer, held_out).items():
        print(f"{n:2d} tokens: mean IoU {scores['gIoU']:.3f}, cIoU {scores['cIoU']:.3f}")


def draw_variant(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move, scale and perhaps mirror the object of a mask within an image of the same size: bool (h, w)."""
    height, width = mask.shape
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    left, upper, right, lower = picture.getbbox()
    centre = np.array([(left + right) / 2, (upper + lower) / 2])
    while True:
        scale = float(np.exp(rng.uniform(*np.log(SCALES))))
        x_scale = scale * rng.choice((-1, 1))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        # PIL expects the map from pixels of the new image to those of the old one.
        affine = (1 / x_scale, 0, centre[0] - x / x_scale, 0, 1 / scale, centre[1] - y / scale)
        moved = np.asarray(picture.transform((width, height), Image.Transform.AFFINE, affine)) > 0
        if moved.sum() >= MIN_VISIBLE * scale**2 * mask.sum():
            return moved


def init_tokenizer(arguments: argparse.Namespace, folder: Path) -> None:
    """Create a tokenizer with random weights with `himtok init`."""
    overrides = [part for field in arguments.set for part in ("--set", field)]
    init = ["init", "--size", arguments.size, "--force", *overrides, folder]
    run_python("-c", "from himtok_plugin.cli import main; main()", *init)


def run_python(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
