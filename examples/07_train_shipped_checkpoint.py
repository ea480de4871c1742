"""Train the mask tokenizer and the LMM that ship with the package, in three stages from scratch, and measure them.

    python examples/07_train_shipped_checkpoint.py [MASKS.jsonl] [--output DIR] [--only PART …] [--sft FLAG …]

Shows a complete training recipe: training data, stage 1, an LMM that first learns to answer questions in text, stages 2
and 3, and the packed checkpoint. Made for one GPU and 16 cores: all parts except measure take about a quarter of an
hour there if words runs in parallel with stage1. Without a GPU it takes days.

Parts, in order: masks, stage1, scenes, known_words (the words of all questions; needs only scenes), words (questions
answered in text; needs only scenes), stage2, stage3, pack, measure. `--only measure` in a new folder measures the
shipped checkpoint, in three quarters of an hour on a CPU. `--only scenes known_words --scale 0.01` makes its list of
words in a minute: a hundredth of the scenes has all words.

MASKS.jsonl holds one `{"image_id": …, "segmentation": COCO RLE}` per line, as in COCO's annotations. Every fifth image
is held out; the other masks are moved and scaled, and mixed with generated masks. The LMM learns only from generated
scenes. Seeds are fixed.
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
from himtok_plugin.benchmarks.reconstruction import coco_size
from himtok_plugin.data.generated.object_masks import PICTURE_SIZES, generate_object_mask, move_mask
from himtok_plugin.data.generated.scene_questions import Question
from himtok_plugin.data.generated.scenes import (
    generate_masks,
    generate_scenes,
    scene_row,
    with_saved_images,
    write_rows,
)
from himtok_plugin.demo.training import LAST_CHECKPOINT
from himtok_plugin.evaluation.scoring import score_results
from himtok_plugin.jobs.worker_pool import count_usable_cores, default_num_workers, map_ordered
from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl
from himtok_plugin.mask_tokenizer import build_mask_tokenizer
from himtok_plugin.mask_tokenizer.released_weights import SIDECAR_FOLDER
from himtok_plugin.masks import to_rle, to_square
from himtok_plugin.metrics.reconstruction import ReconstructionMetrics
from himtok_plugin.resources import config_path, default_checkpoint
from himtok_plugin.words.known_words import KNOWN_WORDS_FILE, KnownWords

TRAIN_SEED, HELD_OUT_SEED, TEXT_SEED = 1, 2, 3
HELD_OUT_EVERY = 5
TRAIN_MASKS, EVALUATED_MASKS, MEASURED_MASKS = 400_000, 300, 1000
CANDIDATES, SEARCHED_MASKS = 8, 200  # a searched mask takes seconds on a CPU
MASKS_PER_ROW = 8  # loading a row costs more than loading a mask
SHRINK = 2  # masks have half of COCO's height and width, which is still far more than the tokenizer's square has
MIN_AREA_SHARE = 8 / 128**2  # smaller masks vanish in the tokenizer's square
# Shares of the tokenizer's training masks, before masks that are too small are dropped.
KINDS = {"scene": 0.3, "real": 0.3, "generated": 0.4}
TRAIN_SCENES, MEASURED_SCENES = 120_000, 1000
# Up to five shapes and several requests per scene, so that guessing the object does not pay. More requests for absent
# objects than in the scenes of the demo, since the LMM hardly learns to reject them otherwise.
CONVERSATIONS = {"turns": 5, "questions": 6, "named": True, "max_shapes": 5}
TASK_SHARES = {"attribute": 0.45, "relation": 0.2, "two": 0.15, "none": 0.2}
KEPT_QUESTIONS = 3  # one question out of three is kept in samples with requests
# The part words trains on questions alone like stage 3, except for these keys, and without `--plugin himtok`, since an
# LMM is usually trained without it before.
WORDS_CONFIG = {
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
CHUNK_SIZE = 1000  # masks or scenes that a process generates from one seed
FIRST_SEED = 1000
Chunk = tuple[int, int]  # number of masks or scenes, seed
PARTS = ("masks", "stage1", "scenes", "known_words", "words", "stage2", "stage3", "pack", "measure")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("masks", nargs="?", type=Path)
    parser.add_argument("--output", type=Path, default=Path("shipped"))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor of the numbers of masks, scenes and steps, for a trial"
    )
    parser.add_argument(
        "--processes", type=int, default=default_num_workers(), help="processes that generate masks and scenes"
    )
    parser.add_argument(
        "--sft", nargs=argparse.REMAINDER, default=[], help="flags for every swift sft; has to come last"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    options = ["--tf32", "true"]
    if not torch.cuda.is_available():
        options = ["--use_cpu", "true", "--bf16", "false", "--dataloader_num_workers", "1"]
        os.environ.setdefault("OMP_NUM_THREADS", str(count_usable_cores()))  # the configs leave cores to loading
    folder = arguments.output.resolve()
    recipe = Recipe(folder, arguments.masks, arguments.scale, arguments.processes, options + arguments.sft)
    for part, run_part in recipe.parts().items():
        if part in arguments.only:
            run_part()


class Recipe:
    """The parts of the recipe; each reads from the folder what earlier parts wrote."""

    def __init__(self, folder: Path, real_masks: Path | None, scale: float, processes: int, options: list[str]):
        self.folder = folder
        self.scale = scale
        self.processes = processes
        self.options = options
        self.train_masks: list[Any] = []  # RLE
        self.held_out_masks: list[Any] = []
        entries = [json.loads(line) for line in real_masks.read_text().splitlines()] if real_masks else []
        unseen = set(sorted({entry["image_id"] for entry in entries})[::HELD_OUT_EVERY])
        for entry in entries:
            masks = self.held_out_masks if entry["image_id"] in unseen else self.train_masks
            masks.append(entry["segmentation"])

    def parts(self) -> dict[str, Callable[[], None]]:
        """Return the function of each of `PARTS`, in order."""
        functions = (
            *(self.write_masks, self.train_mask_tokenizer, self.write_scenes, self.list_known_words),
            *(self.train_on_questions, self.train_stage2, self.train_stage3, self.pack, self.measure),
        )
        return dict(zip(PARTS, functions, strict=True))

    def scale_count(self, number: int) -> int:
        """Apply --scale to a number of masks, scenes or steps."""
        return max(int(number * self.scale), 1)

    def _generate(self, generate: Callable[[Chunk], Any], number: int, name: str) -> Iterable[Any]:
        """Yield the results of `generate` for all chunks of `number` masks or scenes, from several processes."""
        sizes = [min(CHUNK_SIZE, number - start) for start in range(0, number, CHUNK_SIZE)]
        chunks = [(size, FIRST_SEED + i) for i, size in enumerate(sizes)]
        return tqdm(map_ordered(generate, chunks, self.processes), total=len(chunks), desc=name)

    # ----- the mask tokenizer

    def write_masks(self) -> None:
        generate = functools.partial(generate_mask_rows, self.train_masks)
        write_lines(self.folder / "masks.jsonl", self._generate(generate, self.scale_count(TRAIN_MASKS), "masks"))
        held_out = generate((self.scale_count(EVALUATED_MASKS), HELD_OUT_SEED))
        write_lines(self.folder / "held_out_masks.jsonl", [held_out])

    def train_mask_tokenizer(self) -> None:
        torch.manual_seed(TRAIN_SEED)
        untrained = self.folder / "mask_tokenizer_untrained"
        build_mask_tokenizer("pocket").save_pretrained(untrained)
        held_out = self.folder / "held_out_masks.jsonl"
        warmup = () if self.scale == 1 else ("--continuous_warmup_steps", 1)
        self._train("stage1", "stage1_pocket_full", untrained, "masks.jsonl", held_out, *warmup)

    # ----- the LMM

    def write_scenes(self) -> None:
        """Write rows with questions alone, rows with requests and few questions, and an untrained LMM."""
        generate = functools.partial(generate_scene_rows, self.folder / "scenes")
        with (self.folder / "words.jsonl").open("w") as words, (self.folder / "requests.jsonl").open("w") as requests:
            for rows in self._generate(generate, self.scale_count(TRAIN_SCENES), "scenes"):
                words.writelines(rows["words"])
                requests.writelines(rows["requests"])
        self._write_held_out_rows()
        scenes = generate_scenes(800, TEXT_SEED, **CONVERSATIONS)
        texts = [turn["content"] for scene in scenes for turn in scene.messages]
        build_tiny_internvl(self.folder / "lmm", texts, "pocket", seed=TRAIN_SEED)

    def list_known_words(self) -> None:
        """List the words of all questions in the training rows, by which answers say what the LMM does not know.

        ms-swift adds to the list of a checkpoint that has one, but the part words runs without `--plugin himtok`.
        """
        files = [self.folder / name for name in ("words.jsonl", "requests.jsonl")]
        texts = (
            message["content"]
            for file in files
            for line in file.open()
            for message in json.loads(line)["messages"]
            if message["role"] == "user"
        )
        KnownWords.of_texts(texts).save(self.folder)

    def train_on_questions(self) -> None:
        """Train the LMM to read the image and to answer in text, as the paper's LMM can before stage 2.

        When it was trained on masks at once, it found objects but did not distinguish colours after 2400 steps.
        """
        config = yaml.safe_load(config_path("stage3_pocket_full").read_text())
        del config["plugin"]
        path = self.folder / "words.yaml"
        path.write_text(yaml.safe_dump(config | WORDS_CONFIG))
        self._swift_sft(
            *(path, "--model", self.folder / "lmm", "--dataset", self.folder / "words.jsonl"),
            *("--output_dir", self.folder / "words", "--external_plugins", self._write_optimizer_plugin()),
        )

    def _write_optimizer_plugin(self) -> Path:
        path = self.folder / "register_muon.py"
        path.write_text("from himtok_plugin.swift_integration.training.muon import register_muon\n\nregister_muon()\n")
        return path

    def train_stage2(self) -> None:
        self._train(
            *("stage2", "stage2_pocket_full", self._checkpoint("words"), "requests.jsonl", self._write_held_out_rows()),
            *("--mask_tokenizer", self._checkpoint("stage1")),
        )

    def train_stage3(self) -> None:
        self._train(
            "stage3", "stage3_pocket_full", self._checkpoint("stage2"), "requests.jsonl", self._write_held_out_rows()
        )

    def _write_held_out_rows(self) -> Path:
        rows = self.folder / "held_out" / "rows.jsonl"
        if not rows.is_file():
            write_rows(rows.parent, self.scale_count(MEASURED_SCENES), HELD_OUT_SEED)
        return rows

    def _train(self, part: str, config: str, model: Path, rows: str, held_out: Path, *options: object) -> None:
        self._swift_sft(
            *(config_path(config), "--model", model, "--dataset", self.folder / rows),
            *("--val_dataset", held_out, "--output_dir", self.folder / part, *options),
        )

    def _swift_sft(self, *arguments: object) -> None:
        max_steps = () if self.scale == 1 else ("--max_steps", self.scale_count(1000))
        run_swift("sft", *arguments, *max_steps, *self.options)

    def _checkpoint(self, part: str) -> Path:
        return self.folder / part / LAST_CHECKPOINT

    # ----- results

    def pack(self) -> None:
        """Copy the checkpoint with weights in float16; its configurations keep float32, as which it is loaded.

        The mask tokenizer is that of stage 1. During so short a stage 2 the LMM is uncertain about codes, and the
        de-tokenizer gets worse at certain ones (an earlier, smaller tokenizer: IoU of true codes 0.79 instead of 0.82).
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
        files[packed / KNOWN_WORDS_FILE] = self.folder / KNOWN_WORDS_FILE
        files |= {packed / SIDECAR_FOLDER / name: tokenizer / name for name in ("config.json", "model.safetensors")}
        for target, source in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".safetensors":
                halves = {key: value.half() for key, value in load_file(source).items()}
                save_file(halves, target, metadata={"format": "pt"})
                target.chmod(0o644)  # safetensors makes it readable for its owner only, who installs the package
            else:
                target.write_bytes(source.read_bytes())
        size = sum(path.stat().st_size for path in packed.rglob("*") if path.is_file())
        print(f"{packed}: {size / 1e6:.1f} MB")

    def measure(self) -> None:
        """Measure the packed checkpoint, or the shipped one if none was packed here."""
        packed = self.folder / "packed"
        checkpoint = packed if packed.is_dir() else default_checkpoint()
        figures: dict[str, object] = {}
        tokenizer = MaskTokenizer.from_pretrained(checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
        masks = {"scenes": list(generate_masks(self.scale_count(MEASURED_MASKS), HELD_OUT_SEED))}
        if self.held_out_masks:
            masks["COCO"] = [load_mask(mask) for mask in self.held_out_masks]
        for candidates, limit in ((1, None), (CANDIDATES, SEARCHED_MASKS)):
            for name in masks:
                for group, scores in measure_reconstruction(tokenizer, name, masks[name][:limit], candidates).items():
                    figures[f"reconstruction, {group}, {candidates} candidates"] = scores
        for decoding in ("soft", "hard"):
            result = self.folder / f"{decoding}.jsonl"
            result.unlink(missing_ok=True)  # ms-swift would append to it
            run_swift(
                *("infer", "--plugin", "himtok", "--model", checkpoint, "--mask_decoding", decoding),
                *("--val_dataset", self._write_held_out_rows(), "--result_path", result),
                *("--max_batch_size", 64, "--max_new_tokens", 96, "--temperature", 0, "--stream", "false"),
            )
            figures[f"LMM, {decoding}"] = score_results(result)
        text = json.dumps(figures, indent=2)
        (self.folder / "figures.json").write_text(text + "\n")
        print(text)


def measure_reconstruction(
    tokenizer: MaskTokenizer, name: str, masks: list[np.ndarray], candidates: int
) -> dict[str, dict[int, dict[str, float]]]:
    """Measure IoU by number of tokens, of all masks and, for COCO's masks, of small, medium and large ones."""
    empty = functools.partial(ReconstructionMetrics, tokenizer.config.num_mask_tokens)
    metrics = defaultdict(empty)
    for mask in tqdm(masks, desc=f"{name}, {candidates} candidates"):
        square = torch.from_numpy(to_square(mask, tokenizer.config.image_size))
        codes = tokenizer.encode(square[None].to(tokenizer.device), candidates)
        metrics[coco_size(mask) if name == "COCO" else name].update(tokenizer, codes, [mask])
    if name == "COCO":
        metrics = {name: functools.reduce(ReconstructionMetrics.merge, metrics.values(), empty()), **metrics}
    return {
        f"{len(metrics[group])} {group}": {
            n: {metric: round(score[metric], 4) for metric in ("gIoU", "cIoU")}
            for n, score in metrics[group].compute().items()
        }
        for group in metrics
    }


def generate_mask_rows(real: list[Any], chunk: Chunk) -> list[str]:
    """Generate rows of training masks that are large enough, as JSON lines; `real` holds real masks as RLE."""
    number, seed = chunk
    masks = (to_rle(mask) for mask in generate_training_masks(real, number, seed) if mask.mean() >= MIN_AREA_SHARE)
    rows = iter(lambda: list(itertools.islice(masks, MASKS_PER_ROW)), [])
    return [json.dumps({"masks": masks}) + "\n" for masks in rows]


def generate_training_masks(real: list[Any], number: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    shares = np.array([0 if kind == "real" and not real else KINDS[kind] for kind in KINDS])
    scenes = generate_masks(number, seed)
    for kind in rng.choice([*KINDS], size=number, p=shares / shares.sum()):
        if kind == "scene":
            yield next(scenes)
        elif kind == "real":
            mask = load_mask(real[rng.integers(len(real))])
            smaller = mask[::SHRINK, ::SHRINK]
            yield move_mask(smaller if smaller.any() else mask, rng)
        else:
            height, width = PICTURE_SIZES[rng.integers(len(PICTURE_SIZES))]
            yield generate_object_mask((height // SHRINK, width // SHRINK), rng)


def generate_scene_rows(folder: Path, chunk: Chunk) -> dict[str, list[str]]:
    """Generate rows of questions and of requests about scenes, as JSON lines; write the images into `folder`."""
    number, seed = chunk
    rows: dict[str, list[str]] = {"words": [], "requests": []}
    scenes = generate_scenes(number, seed, task_shares=TASK_SHARES, **CONVERSATIONS)
    for i, (scene, image) in enumerate(with_saved_images(folder / str(seed), scenes)):
        questions = [turn for turn in scene.turns if isinstance(turn, Question)]
        dropped = [turn for k, turn in enumerate(questions, start=1) if (i + k) % KEPT_QUESTIONS]
        kept = [turn for turn in scene.turns if turn not in dropped]
        for name, turns in (("words", questions), ("requests", kept)):
            if turns:
                rows[name].append(json.dumps(scene_row(replace(scene, turns=tuple(turns)), image)) + "\n")
    return rows


def write_lines(path: Path, parts: Iterable[list[str]]) -> None:
    with path.open("w") as file:
        file.writelines(itertools.chain.from_iterable(parts))


def run_swift(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "swift.cli.main", *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
