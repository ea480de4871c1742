"""Train the default mask tokenizer on masks of real objects and generated ones, and measure it.

    python examples/10_train_mask_tokenizer.py MASKS [MASKS …] [--output DIR] [--only PART …] [--set FIELD=NUMBER …]
        [--sft FLAG …]

Shows stage 1 for masks of your own. Each MASKS is a COCO annotation file (`instances.json`), or JSON lines with
`image` or `image_id` and `segmentation` (COCO RLE, or polygons with a `size`). A tenth of the images is held out. The
other masks are moved, scaled, stretched and tilted, and mixed with generated masks. Seeds are fixed.

Parts, in order: masks (writes the rows), stage1 (`swift sft` with the config stage1_box_full), pack (weights in half
precision), measure (mean IoU by number of tokens and by size on all held-out masks of each source, and on generated
scenes, with `himtok bench masks`). Takes about an hour on two cores.
"""

import argparse
import functools
import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from himtok_plugin import load_mask
from himtok_plugin.data.generated.object_masks import PICTURE_SIZES, generate_object_mask, move_mask
from himtok_plugin.data.generated.scenes import generate_masks
from himtok_plugin.demo.training import LAST_CHECKPOINT
from himtok_plugin.jobs.worker_pool import default_num_workers, map_ordered
from himtok_plugin.mask_tokenizer import MaskTokenizerConfig, build_mask_tokenizer
from himtok_plugin.masks import to_rle
from himtok_plugin.resources import config_path

SEED, HELD_OUT_SEED = 1, 2
HELD_OUT_ONE_IN = 10  # images
TRAIN_MASKS, SCENE_MASKS, EVALUATED_MASKS = 96_000, 1000, 512
MASKS_PER_ROW = 8  # loading a row costs more than loading a mask
CANDIDATES = 8
KINDS = {"real": 0.65, "generated": 0.2, "scene": 0.15}  # shares of the training masks
MAX_SIDE = 512  # larger masks are halved: the square of the mask tokenizer has 256 pixels
CHUNK_SIZE, FIRST_SEED = 1000, 1000  # masks that a process generates from one seed
PARTS = ("masks", "stage1", "pack", "measure")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masks", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path("mask_tokenizer_training"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of masks, for a trial")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="FIELD=NUMBER",
        help="fields of the configuration, to compare: canvas_size=32",
    )
    parser.add_argument("--processes", type=int, default=default_num_workers(), help="processes that generate masks")
    parser.add_argument("--sft", nargs=argparse.REMAINDER, default=[], help="flags for swift sft; has to come last")
    arguments = parser.parse_args()
    folder = arguments.output.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if "masks" in arguments.only:
        write_masks(folder, arguments.masks, arguments.scale, arguments.processes)
    if "stage1" in arguments.only:
        train(folder, arguments.set, arguments.sft)
    if "pack" in arguments.only:
        pack(folder)
    if "measure" in arguments.only:
        measure(folder)


def read_masks(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield group, image and mask source (see `load_mask`) of each object of an annotation file."""
    text = path.read_text(encoding="utf-8")
    try:
        annotations = json.loads(text)  # fails for several lines
        if "annotations" not in annotations:
            raise ValueError
    except ValueError:
        for line in text.splitlines():
            entry = json.loads(line)
            group = entry.get("source", path.stem)
            yield group, f"{entry.get('source', '')}{entry.get('image', entry.get('image_id'))}", entry["segmentation"]
        return
    sizes = {image["id"]: [image["height"], image["width"]] for image in annotations["images"]}
    for entry in annotations["annotations"]:
        source = entry["segmentation"]
        if isinstance(source, list):
            source = {"polygons": source, "size": sizes[entry["image_id"]]}
        yield path.stem, str(entry["image_id"]), source


def is_held_out(image: str) -> bool:
    return int(hashlib.md5(image.encode()).hexdigest(), 16) % HELD_OUT_ONE_IN == 0


def write_masks(folder: Path, files: list[Path], scale: float, processes: int) -> None:
    train: list[Any] = []
    held_out: dict[str, list[Any]] = {}
    for group, image, source in itertools.chain.from_iterable(map(read_masks, files)):
        mask = load_mask(source)
        if mask.any():
            (held_out.setdefault(group, []) if is_held_out(image) else train).append(to_rle(mask))
    for group, masks in held_out.items():
        write_rows(folder / f"held_out_{group}.jsonl", masks)
        print(f"{group}: {len(masks)} masks held out")
    print(f"{len(train)} real masks to train on")
    mixed = [*itertools.chain.from_iterable(held_out.values())]
    chosen = np.random.default_rng(HELD_OUT_SEED).permutation(len(mixed))[:EVALUATED_MASKS]
    write_rows(folder / "validation.jsonl", [mixed[i] for i in chosen])
    scenes = (to_rle(mask) for mask in generate_masks(max(int(SCENE_MASKS * scale), MASKS_PER_ROW), HELD_OUT_SEED))
    write_rows(folder / "held_out_scenes.jsonl", scenes)

    number = max(int(TRAIN_MASKS * scale), MASKS_PER_ROW)
    chunks = [(min(CHUNK_SIZE, number - start), FIRST_SEED + i) for i, start in enumerate(range(0, number, CHUNK_SIZE))]
    generated = map_ordered(functools.partial(generate_training_masks, train), chunks, processes)
    masks = itertools.chain.from_iterable(tqdm(generated, total=len(chunks), desc="masks"))
    write_rows(folder / "masks.jsonl", masks)


def write_rows(path: Path, masks: Iterable[Any]) -> None:
    remaining = iter(masks)
    with path.open("w") as file:
        while row := list(itertools.islice(remaining, MASKS_PER_ROW)):
            file.write(json.dumps({"masks": row}) + "\n")


def generate_training_masks(real: list[Any], chunk: tuple[int, int]) -> list[Any]:
    """Masks as RLE: real ones, moved, and generated ones. `chunk` has their number and a seed."""
    number, seed = chunk
    rng = np.random.default_rng(seed)
    scenes = generate_masks(number, seed)
    masks = []
    for kind in rng.choice([*KINDS], size=number, p=[*KINDS.values()]):
        if kind == "scene":
            mask = next(scenes)
        elif kind == "generated":
            height, width = PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
            mask = generate_object_mask((height // 2, width // 2), rng)
        else:
            mask = load_mask(real[rng.integers(len(real))])
            while max(mask.shape) > MAX_SIDE and mask[::2, ::2].any():
                mask = mask[::2, ::2]
            mask = move_mask(mask, rng)
        masks.append(to_rle(mask))
    return masks


def train(folder: Path, changes: list[str], options: list[str]) -> None:
    torch.manual_seed(SEED)
    fields = {name: int(value) for name, _, value in (change.partition("=") for change in changes)}
    build_mask_tokenizer("box", **fields).save_pretrained(folder / "untrained")
    run(
        *("swift.cli.main", "sft", config_path("stage1_box_full"), "--model", folder / "untrained"),
        *("--dataset", folder / "masks.jsonl", "--val_dataset", folder / "validation.jsonl"),
        *("--output_dir", folder / "stage1", *options),
    )


def pack(folder: Path) -> None:
    """Copy the checkpoint with weights in float16; its configuration keeps float32, as which it is loaded."""
    packed, trained = folder / "packed", folder / "stage1" / LAST_CHECKPOINT
    packed.mkdir(exist_ok=True)
    halves = {name: value.half() for name, value in load_file(trained / "model.safetensors").items()}
    save_file(halves, packed / "model.safetensors", metadata={"format": "pt"})
    (packed / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner only
    fields = MaskTokenizerConfig.from_pretrained(trained)
    config = MaskTokenizerConfig(**{name: getattr(fields, name) for name in MaskTokenizerConfig.field_names()})
    config.architectures, config.dtype = fields.architectures, fields.dtype
    config.save_pretrained(packed)
    print(f"{packed}: {(packed / 'model.safetensors').stat().st_size / 1e6:.1f} MB")


def measure(folder: Path) -> None:
    for rows in sorted(folder.glob("held_out_*.jsonl")):
        for candidates in (1, CANDIDATES):
            print(f"{rows.stem}, {candidates} candidates", flush=True)
            figures = folder / f"figures_{rows.stem}_{candidates}.json"
            command = ("bench", "masks", rows, "--mask_tokenizer", folder / "packed", "--candidates", candidates)
            run("himtok_plugin.cli", *command, "--quiet", "--json", figures)


def run(module: str, *arguments: object) -> None:
    """Run a command as a user would type it, with this interpreter."""
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
