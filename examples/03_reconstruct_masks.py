"""Train a mask tokenizer on masks of your own and measure it on images that it has not seen.

    python examples/03_reconstruct_masks.py [MASKS.jsonl] [--output DIR] [--steps N] [--start default]

MASKS.jsonl: one `{"image_id": …, "segmentation": COCO RLE}` per line, as COCO's annotations hold them. Every fifth
image is held out. A few hundred masks alone are learned by heart, so each one is seen at many sizes and places, and
generated shapes join them. Without a file: generated shapes only.
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
from himtok_plugin.masks.sources import to_rle
from himtok_plugin.metrics.reconstruction import reconstruction_scores
from himtok_plugin.resources import config_path

HELD_OUT_EVERY = 5
GENERATED = 8000
VARIANTS = 60  # of each real mask
SCALES = (0.5, 2.0)
VISIBLE = 0.5  # of a variant at least, which may lie over the edge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masks", nargs="?", type=Path)
    parser.add_argument("--output", type=Path, default=Path("reconstruction"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--start", metavar="DIR", help="go on from this tokenizer (`default`: the shipped one)")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of the configuration")
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
        print(f"{len(train)} masks to train on, {len(held_out)} of {len(unseen)} unseen images to measure on")
    else:
        train, held_out = [], list(generate_masks(200, seed=2))
    rows = output / "masks.jsonl"
    rng = np.random.default_rng(1)
    moved = [to_rle(variant(mask, rng)) for mask in train for _ in range(VARIANTS)]
    rows.write_text("".join(json.dumps({"masks": [mask]}) + "\n" for mask in moved + generated))

    start = output / "untrained"
    if arguments.start:
        start.parent.mkdir(parents=True, exist_ok=True)
        MaskTokenizer.from_pretrained(arguments.start).save_pretrained(start)
    else:
        initialise(arguments, start)
    run(
        *("-m", "swift.cli.main", "sft", config_path("stage1_tiny_full"), "--model", start),
        *("--dataset", rows, "--max_steps", arguments.steps, "--save_steps", arguments.steps, "--eval_strategy", "no"),
        *("--continuous_warmup_steps", arguments.steps // 3),
        *("--output_dir", output / "stage1"),
    )
    tokenizer = MaskTokenizer.from_pretrained(output / "stage1" / f"checkpoint-{arguments.steps}")
    for n, scores in reconstruction_scores(tokenizer, held_out).items():
        print(f"{n:2d} tokens: mean IoU {scores['gIoU']:.3f}, cIoU {scores['cIoU']:.3f}")


def variant(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The object of a mask mirrored or not, at another size and place in a picture as large: bool (h, w)."""
    height, width = mask.shape
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    left, upper, right, lower = picture.getbbox()
    centre = np.array([(left + right) / 2, (upper + lower) / 2])
    while True:
        scale = float(np.exp(rng.uniform(*np.log(SCALES))))
        x_scale = scale * rng.choice((-1, 1))
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        # What PIL takes: where in the old picture each pixel of the new one comes from.
        affine = (1 / x_scale, 0, centre[0] - x / x_scale, 0, 1 / scale, centre[1] - y / scale)
        moved = np.asarray(picture.transform((width, height), Image.Transform.AFFINE, affine)) > 0
        if moved.sum() >= VISIBLE * scale**2 * mask.sum():
            return moved


def initialise(arguments: argparse.Namespace, folder: Path) -> None:
    """A tokenizer with fresh weights, by `himtok init`."""
    overrides = [part for field in arguments.set for part in ("--set", field)]
    init = ["init", "--size", arguments.size, "--force", *overrides, folder]
    run("-c", "from himtok_plugin.cli import main; main()", *init)


def run(*arguments: object) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
