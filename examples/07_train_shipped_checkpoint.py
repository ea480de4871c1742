"""Train the mask tokenizer and the LMM that ship with the package, by the project's own three stages, and pack them.

    python examples/07_train_shipped_checkpoint.py [MASKS.jsonl] [--output DIR] [--only PART …]

MASKS.jsonl: one `{"image_id": …, "segmentation": COCO RLE}` per line, as COCO's annotations hold them. Every fifth
image is held out; the others' masks are shown to the tokenizer at many sizes and places, beside generated masks. The
LMM learns from generated scenes alone: first from questions that words answer, then to segment. Seeds are fixed. On two
CPU cores it takes some hours; parts can be run one by one: masks, stage1, scenes, words, stage2, stage3, pack, measure.
`--only measure` in a new folder measures the checkpoint that ships.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from himtok_plugin import MaskTokenizer, load_mask
from himtok_plugin.data.object_masks import SIZES, moved, object_mask
from himtok_plugin.data.questions import Question
from himtok_plugin.data.scenes import (
    Scene,
    generate_masks,
    generate_scenes,
    scene_row,
    with_saved_images,
    write_rows,
)
from himtok_plugin.mask_tokenizer import build_mask_tokenizer
from himtok_plugin.mask_tokenizer.conversion import SIDECAR_FOLDER
from himtok_plugin.masks import to_rle
from himtok_plugin.reconstruction import reconstruction_scores
from himtok_plugin.resources import config_path, default_checkpoint
from himtok_plugin.scoring import score_rows
from himtok_plugin.tiny_lmm import build_tiny_internvl

TRAIN_SEED, HELD_OUT_SEED, TEXT_SEED = 1, 2, 3
HELD_OUT_EVERY = 5
TRAIN_MASKS, MEASURED_MASKS = 200_000, 1000
LEAST_SHARE = 8 / 64**2  # of its picture: what is smaller vanishes in the tokenizer's square
# Of the tokenizer's training masks, before those that are too small are left out.
KINDS = {"scene": 0.3, "real": 0.3, "generated": 0.4}
SCENE_SEEDS, TRAIN_SCENES, MEASURED_SCENES = (11, 12), 16_500, 1000  # scenes of each seed
# Up to five shapes and several requests about them, so that guessing what is meant does not pay, and more requests for
# what is not there than the scenes of the demo have: rarely asked, it is hardly learned.
CONVERSATIONS = {"turns": 4, "questions": 3, "named": True, "max_shapes": 5}
TASK_SHARES = {"attribute": 0.45, "relation": 0.2, "two": 0.15, "none": 0.2}
KEPT_QUESTIONS = 3  # one of so many stays beside the requests
WORD_STEPS, WORD_BATCH = 150, 32
SMALL, LARGE = 32**2, 96**2  # COCO's areas, in pixels
PARTS = ("masks", "stage1", "scenes", "words", "stage2", "stage3", "pack", "measure")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masks", nargs="?", type=Path)
    parser.add_argument("--output", type=Path, default=Path("shipped"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of masks, scenes and steps: for a try")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(arguments.output.resolve(), arguments.masks, arguments.scale)
    for part in PARTS:
        if part in arguments.only:
            getattr(recipe, part)()


class Recipe:
    """The parts, each of which reads from the folder what earlier ones wrote."""

    def __init__(self, folder: Path, real_masks: Path | None, scale: float):
        self.folder = folder
        self.scale = scale
        self.real: dict[bool, list[np.ndarray]] = {True: [], False: []}  # by whether they are held out
        entries = [json.loads(line) for line in real_masks.read_text().splitlines()] if real_masks else []
        unseen = set(sorted({entry["image_id"] for entry in entries})[::HELD_OUT_EVERY])
        for entry in entries:
            self.real[entry["image_id"] in unseen].append(load_mask(entry["segmentation"]))

    def count(self, number: int) -> int:
        return max(int(number * self.scale), 1)

    # ----- the mask tokenizer

    def masks(self) -> None:
        for name, number, seed in (("masks", TRAIN_MASKS, TRAIN_SEED), ("held_out_masks", 300, HELD_OUT_SEED)):
            number = self.count(number)
            with (self.folder / f"{name}.jsonl").open("w") as file:
                for mask in tqdm(self._training_masks(number, seed), total=number, desc=name):
                    if mask.mean() >= LEAST_SHARE:
                        file.write(json.dumps({"masks": [to_rle(mask)]}) + "\n")

    def _training_masks(self, number: int, seed: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        shares = np.array([0 if kind == "real" and not self.real[False] else KINDS[kind] for kind in KINDS])
        scenes = generate_masks(number, seed)
        for kind in rng.choice([*KINDS], size=number, p=shares / shares.sum()):
            if kind == "scene":
                yield next(scenes)
            elif kind == "real":
                yield moved(self.real[False][rng.integers(len(self.real[False]))], rng)
            else:
                yield object_mask(SIZES[rng.integers(len(SIZES))], rng)

    def stage1(self) -> None:
        torch.manual_seed(TRAIN_SEED)
        fresh = self.folder / "mask_tokenizer_untrained"
        build_mask_tokenizer("pocket").save_pretrained(fresh)
        self._train("stage1", "stage1_pocket_full", fresh, "masks.jsonl", self.folder / "held_out_masks.jsonl")

    # ----- the LMM

    def scenes(self) -> None:
        """Rows of questions alone, rows of requests with few questions, and an LMM that has seen neither."""
        with (self.folder / "words.jsonl").open("w") as words, (self.folder / "requests.jsonl").open("w") as requests:
            for i, (scene, image) in enumerate(self._conversations()):
                questions = [turn for turn in scene.turns if isinstance(turn, Question)]
                left_out = [turn for k, turn in enumerate(questions, start=1) if (i + k) % KEPT_QUESTIONS]
                for file, turns in (
                    (words, questions),
                    (requests, [turn for turn in scene.turns if turn not in left_out]),
                ):
                    if turns:
                        file.write(json.dumps(scene_row(replace(scene, turns=tuple(turns)), image)) + "\n")
        self._held_out()
        spoken = {**CONVERSATIONS, "turns": 3, "questions": 4}  # questions have the more various words
        texts = [turn["content"] for scene in generate_scenes(800, TEXT_SEED, **spoken) for turn in scene.messages]
        build_tiny_internvl(self.folder / "lmm", texts, "pocket", seed=TRAIN_SEED)

    def _conversations(self) -> Iterator[tuple[Scene, str]]:
        number = self.count(TRAIN_SCENES)
        for seed in SCENE_SEEDS:
            scenes = generate_scenes(number, seed, task_shares=TASK_SHARES, **CONVERSATIONS)
            progress = tqdm(scenes, total=number, desc=f"scenes, seed {seed}")
            yield from with_saved_images(self.folder / f"scenes{seed}", progress)

    def words(self) -> None:
        """What the paper's LMM knows before it sees a mask, and this one does not: to look, and to read.

        Shown masks at once, it learned where things are and was blind to colours after 2400 steps.
        """
        self._train(
            *("words", "stage3_pocket_full", self.folder / "lmm", "words.jsonl", self._held_out()),
            *("--mask_tokenizer", self._checkpoint("stage1"), "--lr_scheduler_type", "constant_with_warmup"),
            *("--max_steps", WORD_STEPS, "--warmup_ratio", 0.1, "--per_device_train_batch_size", WORD_BATCH),
        )

    def stage2(self) -> None:
        self._train("stage2", "stage2_pocket_full", self._checkpoint("words"), "requests.jsonl", self._held_out())

    def stage3(self) -> None:
        self._train("stage3", "stage3_pocket_full", self._checkpoint("stage2"), "requests.jsonl", self._held_out())

    def _held_out(self) -> Path:
        rows = self.folder / "held_out" / "rows.jsonl"
        if not rows.is_file():
            write_rows(rows.parent, self.count(MEASURED_SCENES), HELD_OUT_SEED)
        return rows

    def _train(self, part: str, config: str, model: Path, rows: str, held_out: Path, *options: object) -> None:
        swift(
            *("sft", config_path(config), "--model", model, "--dataset", self.folder / rows),
            *("--val_dataset", held_out, "--output_dir", self.folder / part, *options),
            *(() if self.scale == 1 else ("--max_steps", self.count(1000))),
        )

    def _checkpoint(self, part: str) -> Path:
        return self.folder / part / "last-checkpoint"  # ms-swift's link

    # ----- results

    def pack(self) -> None:
        """Weights in half precision; configurations keep saying float32, which is what they are loaded as.

        The mask tokenizer is that of stage 1: beside an LMM that is unsure of codes for all of so short a stage 2,
        the de-tokenizer becomes worse at sharp ones (IoU 0.82 to 0.79 of true codes, 0.57 to 0.56 of the LMM's).
        """
        packed = self.folder / "packed"
        names = [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "processor_config.json",
        ]
        lmm, tokenizer = self._checkpoint("stage3"), self._checkpoint("stage1")
        files = {packed / name: lmm / name for name in names}
        files |= {packed / SIDECAR_FOLDER / name: tokenizer / name for name in ("config.json", "model.safetensors")}
        for target, source in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".safetensors":
                halves = {key: value.half() for key, value in load_file(source).items()}
                save_file(halves, target, metadata={"format": "pt"})
                target.chmod(0o644)  # others than who installs it are to read it; safetensors keeps it from them
            else:
                target.write_bytes(source.read_bytes())
        size = sum(path.stat().st_size for path in packed.rglob("*") if path.is_file())
        print(f"{packed}: {size / 1e6:.1f} MB")

    def measure(self) -> None:
        """Figures of the checkpoint that was packed here, or else of the one that ships."""
        packed = self.folder / "packed"
        checkpoint = packed if packed.is_dir() else default_checkpoint()
        figures: dict[str, object] = {}
        tokenizer = MaskTokenizer.from_pretrained(checkpoint)
        measured = {"scenes": list(generate_masks(self.count(MEASURED_MASKS), HELD_OUT_SEED))}
        if self.real[True]:
            area = np.array([mask.sum() for mask in self.real[True]])
            for name, chosen in (
                ("COCO", area > 0),
                ("COCO small", area < SMALL),
                ("COCO medium", (area >= SMALL) & (area < LARGE)),
                ("COCO large", area >= LARGE),
            ):
                measured[name] = [mask for mask, use in zip(self.real[True], chosen, strict=True) if use]
        for name, masks in measured.items():
            scores = reconstruction_scores(tokenizer, masks)
            figures[f"reconstruction, {name}, {len(masks)} masks"] = {
                n: {metric: round(score[metric], 4) for metric in ("gIoU", "cIoU")} for n, score in scores.items()
            }
        for decoding in ("soft", "hard"):
            result = self.folder / f"{decoding}.jsonl"
            result.unlink(missing_ok=True)  # ms-swift appends
            swift(
                *("infer", "--plugin", "himtok", "--model", checkpoint, "--mask_decoding", decoding),
                *("--val_dataset", self._held_out(), "--result_path", result),
                *("--max_batch_size", 64, "--max_new_tokens", 96, "--temperature", 0, "--stream", "false"),
            )
            figures[f"LMM, {decoding}"] = score_rows(result)
        text = json.dumps(figures, indent=2)
        (self.folder / "figures.json").write_text(text + "\n")
        print(text)


def swift(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "swift.cli.main", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
