"""Train the mask tokenizer and the LMM that ship with the package, by the project's own three stages, and pack them.

    python examples/07_train_shipped_checkpoint.py [MASKS.jsonl] [--output DIR] [--only PART …] [--sft FLAG …]

MASKS.jsonl: one `{"image_id": …, "segmentation": COCO RLE}` per line, as COCO's annotations hold them. Every fifth
image is held out; the others' masks are shown to the tokenizer at many sizes and places, beside generated masks. The
LMM learns from generated scenes alone: first from questions that words answer, then to segment. Seeds are fixed. It is
made for one GPU and 16 cores; without a GPU it runs too, for days. Parts can be run one by one: masks, stage1, scenes,
words, stage2, stage3, pack, measure; words needs scenes alone, and with it beside stage1 all but measure takes about a
quarter of an hour. `--only measure` in a new folder measures the checkpoint that ships, in three quarters of an hour of
a CPU.
"""

import argparse
import functools
import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from himtok_plugin import MaskTokenizer, load_mask
from himtok_plugin.data.generated.object_masks import PICTURE_SIZES, moved, object_mask
from himtok_plugin.data.generated.scene_questions import Question
from himtok_plugin.data.generated.scenes import (
    generate_masks,
    generate_scenes,
    scene_row,
    with_saved_images,
    write_rows,
)
from himtok_plugin.demo.run import LAST_CHECKPOINT
from himtok_plugin.evaluation.scoring import score_results
from himtok_plugin.jobs.worker_pool import default_workers, map_ordered, usable_cores
from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl
from himtok_plugin.mask_tokenizer import build_mask_tokenizer
from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER
from himtok_plugin.masks.sources import to_rle, to_square
from himtok_plugin.metrics.reconstruction import ReconstructionMetrics
from himtok_plugin.resources import config_path, default_checkpoint

TRAIN_SEED, HELD_OUT_SEED, TEXT_SEED = 1, 2, 3
HELD_OUT_EVERY = 5
TRAIN_MASKS, EVALUATED_MASKS, MEASURED_MASKS = 400_000, 300, 1000
CANDIDATES, SEARCHED_MASKS = 8, 200  # a searched mask takes seconds on a CPU
MASKS_PER_ROW = 8  # a row costs more than a mask does
SHRINK = 2  # pictures of masks have half of COCO's sides: still far more than the tokenizer's square
LEAST_SHARE = 8 / 128**2  # of its picture: what is smaller vanishes in the tokenizer's square
# Of the tokenizer's training masks, before those that are too small are left out.
KINDS = {"scene": 0.3, "real": 0.3, "generated": 0.4}
TRAIN_SCENES, MEASURED_SCENES = 120_000, 1000
# Up to five shapes and several requests about them, so that guessing what is meant does not pay, and more requests for
# what is not there than the scenes of the demo have: rarely asked, it is hardly learned.
CONVERSATIONS = {"turns": 5, "questions": 6, "named": True, "max_shapes": 5}
TASK_SHARES = {"attribute": 0.45, "relation": 0.2, "two": 0.15, "none": 0.2}
KEPT_QUESTIONS = 3  # one of so many stays beside the requests
# Questions alone are trained as stage 3 is but for this, and without `--plugin himtok`, as any LMM that it meets was.
WORDS = {
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_ratio": 0.05,
    "max_steps": 1700,
    "save_steps": 1700,
    "seed": 42,
    "data_seed": 42,
    "dataloader_num_workers": 8,
    "eval_strategy": "no",
    "split_dataset_ratio": 0,
}
PART = 1000  # masks or scenes that a process draws from one seed, the first of which is
FIRST_SEED = 1000
SMALL, LARGE = 32**2, 96**2  # COCO's areas, in pixels
Part = tuple[int, int]  # how many of them, and the seed
PARTS = ("masks", "stage1", "scenes", "words", "stage2", "stage3", "pack", "measure")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masks", nargs="?", type=Path)
    parser.add_argument("--output", type=Path, default=Path("shipped"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of masks, scenes and steps: for a try")
    parser.add_argument("--processes", type=int, default=default_workers(), help="that draw masks and scenes")
    parser.add_argument("--sft", nargs=argparse.REMAINDER, default=[], help="flags of every swift sft; comes last")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    options = ["--tf32", "true"]
    if not torch.cuda.is_available():
        options = ["--use_cpu", "true", "--bf16", "false", "--dataloader_num_workers", "1"]
        os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))  # the configs leave cores to loading
    folder = arguments.output.resolve()
    recipe = Recipe(folder, arguments.masks, arguments.scale, arguments.processes, options + arguments.sft)
    for part in PARTS:
        if part in arguments.only:
            getattr(recipe, part)()


class Recipe:
    """The parts, each of which reads from the folder what earlier ones wrote."""

    def __init__(self, folder: Path, real_masks: Path | None, scale: float, processes: int, options: list[str]):
        self.folder = folder
        self.scale = scale
        self.processes = processes
        self.options = options
        self.real: dict[bool, list[Any]] = {True: [], False: []}  # RLE by whether they are held out
        entries = [json.loads(line) for line in real_masks.read_text().splitlines()] if real_masks else []
        unseen = set(sorted({entry["image_id"] for entry in entries})[::HELD_OUT_EVERY])
        for entry in entries:
            self.real[entry["image_id"] in unseen].append(entry["segmentation"])

    def count(self, number: int) -> int:
        return max(int(number * self.scale), 1)

    def _drawn(self, draw: Callable[[Part], Any], number: int, name: str) -> Iterable[Any]:
        """What `draw` makes of one part after the other of `number` masks or scenes, in several processes."""
        sizes = [min(PART, number - start) for start in range(0, number, PART)]
        parts = [(size, FIRST_SEED + i) for i, size in enumerate(sizes)]
        return tqdm(map_ordered(draw, parts, self.processes), total=len(parts), desc=name)

    # ----- the mask tokenizer

    def masks(self) -> None:
        draw = functools.partial(mask_rows, self.real[False])
        write_lines(self.folder / "masks.jsonl", self._drawn(draw, self.count(TRAIN_MASKS), "masks"))
        held_out = draw((self.count(EVALUATED_MASKS), HELD_OUT_SEED))
        write_lines(self.folder / "held_out_masks.jsonl", [held_out])

    def stage1(self) -> None:
        torch.manual_seed(TRAIN_SEED)
        fresh = self.folder / "mask_tokenizer_untrained"
        build_mask_tokenizer("pocket").save_pretrained(fresh)
        held_out = self.folder / "held_out_masks.jsonl"
        quantized = () if self.scale == 1 else ("--continuous_warmup_steps", 1)
        self._train("stage1", "stage1_pocket_full", fresh, "masks.jsonl", held_out, *quantized)

    # ----- the LMM

    def scenes(self) -> None:
        """Rows of questions alone, rows of requests with few questions, and an LMM that has seen neither."""
        draw = functools.partial(scene_rows, self.folder / "scenes")
        with (self.folder / "words.jsonl").open("w") as words, (self.folder / "requests.jsonl").open("w") as requests:
            for rows in self._drawn(draw, self.count(TRAIN_SCENES), "scenes"):
                words.writelines(rows["words"])
                requests.writelines(rows["requests"])
        self._held_out()
        spoken = generate_scenes(800, TEXT_SEED, **CONVERSATIONS)
        texts = [turn["content"] for scene in spoken for turn in scene.messages]
        build_tiny_internvl(self.folder / "lmm", texts, "pocket", seed=TRAIN_SEED)

    def words(self) -> None:
        """What the paper's LMM knows before it sees a mask, and this one does not: to look, and to read.

        Shown masks at once, it learned where things are and was blind to colours after 2400 steps.
        """
        config = yaml.safe_load(config_path("stage3_pocket_full").read_text())
        del config["plugin"]
        path = self.folder / "words.yaml"
        path.write_text(yaml.safe_dump(config | WORDS))
        self._swift_sft(
            *(path, "--model", self.folder / "lmm", "--dataset", self.folder / "words.jsonl"),
            *("--output_dir", self.folder / "words", "--external_plugins", self._optimizer_plugin()),
        )

    def _optimizer_plugin(self) -> Path:
        path = self.folder / "register_muon.py"
        path.write_text("from himtok_plugin.swift_integration.training.muon import register_muon\n\nregister_muon()\n")
        return path

    def stage2(self) -> None:
        self._train(
            *("stage2", "stage2_pocket_full", self._checkpoint("words"), "requests.jsonl", self._held_out()),
            *("--mask_tokenizer", self._checkpoint("stage1")),
        )

    def stage3(self) -> None:
        self._train("stage3", "stage3_pocket_full", self._checkpoint("stage2"), "requests.jsonl", self._held_out())

    def _held_out(self) -> Path:
        rows = self.folder / "held_out" / "rows.jsonl"
        if not rows.is_file():
            write_rows(rows.parent, self.count(MEASURED_SCENES), HELD_OUT_SEED)
        return rows

    def _train(self, part: str, config: str, model: Path, rows: str, held_out: Path, *options: object) -> None:
        self._swift_sft(
            *(config_path(config), "--model", model, "--dataset", self.folder / rows),
            *("--val_dataset", held_out, "--output_dir", self.folder / part, *options),
        )

    def _swift_sft(self, *words: object) -> None:
        short = () if self.scale == 1 else ("--max_steps", self.count(1000))
        swift("sft", *words, *short, *self.options)

    def _checkpoint(self, part: str) -> Path:
        return self.folder / part / LAST_CHECKPOINT

    # ----- results

    def pack(self) -> None:
        """Weights in half precision; configurations keep saying float32, which is what they are loaded as.

        The mask tokenizer is that of stage 1: beside an LMM that is unsure of codes for all of so short a stage 2,
        the de-tokenizer becomes worse at sharp ones (of an earlier, smaller tokenizer: true codes came back at IoU 0.79
        instead of 0.82).
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
        tokenizer = MaskTokenizer.from_pretrained(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
        masks = {"scenes": list(generate_masks(self.count(MEASURED_MASKS), HELD_OUT_SEED))}
        if self.real[True]:
            masks["COCO"] = [load_mask(mask) for mask in self.real[True]]
        for candidates, most in ((1, None), (CANDIDATES, SEARCHED_MASKS)):
            for name in masks:
                for part, scores in reconstruction(tokenizer, name, masks[name][:most], candidates).items():
                    figures[f"reconstruction, {part}, {candidates} candidates"] = scores
        for decoding in ("soft", "hard"):
            result = self.folder / f"{decoding}.jsonl"
            result.unlink(missing_ok=True)  # ms-swift appends
            swift(
                *("infer", "--plugin", "himtok", "--model", checkpoint, "--mask_decoding", decoding),
                *("--val_dataset", self._held_out(), "--result_path", result),
                *("--max_batch_size", 64, "--max_new_tokens", 96, "--temperature", 0, "--stream", "false"),
            )
            figures[f"LMM, {decoding}"] = score_results(result)
        text = json.dumps(figures, indent=2)
        (self.folder / "figures.json").write_text(text + "\n")
        print(text)


def reconstruction(
    tokenizer: MaskTokenizer, name: str, masks: list[np.ndarray], candidates: int
) -> dict[str, dict[int, dict[str, float]]]:
    """IoU at numbers of tokens, of all masks and, where they have COCO's areas, of small, medium and large ones."""
    empty = functools.partial(ReconstructionMetrics, tokenizer.config.num_mask_tokens)
    metrics = defaultdict(empty)
    for mask in tqdm(masks, desc=f"{name}, {candidates} candidates"):
        square = torch.from_numpy(to_square(mask, tokenizer.config.image_size))
        codes = tokenizer.encode(square[None].to(tokenizer.device), candidates)
        metrics[coco_size(mask) if name == "COCO" else name].update(tokenizer, codes, [mask])
    if name == "COCO":
        metrics = {name: functools.reduce(ReconstructionMetrics.merge, metrics.values(), empty()), **metrics}
    return {
        f"{len(metrics[part])} {part}": {
            n: {metric: round(score[metric], 4) for metric in ("gIoU", "cIoU")}
            for n, score in metrics[part].compute().items()
        }
        for part in metrics
    }


def coco_size(mask: np.ndarray) -> str:
    area = mask.sum()
    return "small" if area < SMALL else "medium" if area < LARGE else "large"


def mask_rows(real: list[Any], part: Part) -> list[str]:
    """Lines of masks, less those that are too small; `real` are RLE of the real ones among them."""
    number, seed = part
    large = (to_rle(mask) for mask in training_masks(real, number, seed) if mask.mean() >= LEAST_SHARE)
    rows = iter(lambda: list(itertools.islice(large, MASKS_PER_ROW)), [])
    return [json.dumps({"masks": masks}) + "\n" for masks in rows]


def training_masks(real: list[Any], number: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    shares = np.array([0 if kind == "real" and not real else KINDS[kind] for kind in KINDS])
    scenes = generate_masks(number, seed)
    for kind in rng.choice([*KINDS], size=number, p=shares / shares.sum()):
        if kind == "scene":
            yield next(scenes)
        elif kind == "real":
            mask = load_mask(real[rng.integers(len(real))])
            smaller = mask[::SHRINK, ::SHRINK]
            yield moved(smaller if smaller.any() else mask, rng)
        else:
            height, width = PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
            yield object_mask((height // SHRINK, width // SHRINK), rng)


def scene_rows(folder: Path, part: Part) -> dict[str, list[str]]:
    """Lines of questions and of requests about scenes, whose images are written into `folder`."""
    number, seed = part
    rows: dict[str, list[str]] = {"words": [], "requests": []}
    scenes = generate_scenes(number, seed, task_shares=TASK_SHARES, **CONVERSATIONS)
    for i, (scene, image) in enumerate(with_saved_images(folder / str(seed), scenes)):
        questions = [turn for turn in scene.turns if isinstance(turn, Question)]
        left_out = [turn for k, turn in enumerate(questions, start=1) if (i + k) % KEPT_QUESTIONS]
        kept = [turn for turn in scene.turns if turn not in left_out]
        for name, turns in (("words", questions), ("requests", kept)):
            if turns:
                rows[name].append(json.dumps(scene_row(replace(scene, turns=tuple(turns)), image)) + "\n")
    return rows


def write_lines(path: Path, parts: Iterable[list[str]]) -> None:
    with path.open("w") as file:
        file.writelines(itertools.chain.from_iterable(parts))


def swift(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "swift.cli.main", *map(str, words)], check=True)


if __name__ == "__main__":
    main()
