"""Compare choices that the method leaves open, with the same budget on the same generated scenes, several seeds each.

    python examples/05_compare_choices.py [--output DIR] [--only CHOICE …] [--steps 400] [--seeds 3]

Compared are the hierarchical loss on and off, codes that are causal or mixed by the released layout, 8, 16 and 32
tokens, and how the new embedding rows begin; every run is decoded softly and hard. One run is a stage 1
(`stage1_tiny_full`) and a stage 2 (`stage2_tiny_full`) of so many steps, on the GPU where there is one. Finished runs
are not made again, so the table grows from call to call.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from himtok_plugin import MaskTokenizer
from himtok_plugin.data.generated.scenes import (
    generate_masks,
    generate_scenes,
    write_mask_rows,
    write_rows,
)
from himtok_plugin.evaluation.scoring import score_results
from himtok_plugin.lmm.tiny_internvl import build_tiny_internvl
from himtok_plugin.mask_tokenizer import build_mask_tokenizer
from himtok_plugin.metrics.reconstruction import reconstruction_scores
from himtok_plugin.resources import config_path

TRAIN_SEED, HELD_OUT_SEED, TEXT_SEED = 1, 2, 3
TRAIN_MASKS, TRAIN_SCENES, TURNS = 20_000, 10_000, 3
HELD_OUT_MASKS, HELD_OUT_SCENES = 200, 200
SCORES = ("IoU", "soft", "hard")


# What the stage 2 of all runs has in common, where the demo's config, which is tuned to few minutes, says otherwise.
STAGE_TWO = {
    "mask_loss_weight": 1.0,
    "hierarchical_loss_weight": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.04,
}


@dataclass(frozen=True)
class Choice:
    """Fields of the mask tokenizer's configuration, and flags of stage 2, that differ from the baseline's."""

    tokenizer: dict[str, object] = field(default_factory=dict)
    flags: dict[str, object] = field(default_factory=dict)


CHOICES = {
    "baseline": Choice(),
    "legacy reshape": Choice(tokenizer={"latent_layout": "legacy_reshape"}),
    "16 tokens": Choice(tokenizer={"num_mask_tokens": 16}),
    "32 tokens": Choice(tokenizer={"num_mask_tokens": 32}),
    "no hierarchical loss": Choice(flags={"hierarchical_loss_weight": 0}),
    "no mask loss at all": Choice(
        flags={"hierarchical_loss_weight": 0, "mask_loss_weight": 0, "train_detokenizer": False}
    ),
    "rows begin with noise": Choice(flags={"mask_rows_init": "noise"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("choices"))
    parser.add_argument("--only", nargs="*", choices=CHOICES, default=CHOICES)
    parser.add_argument("--tokenizer_steps", type=int, default=800)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at_once", type=int, default=1, help="runs beside each other; more fill a GPU better")
    arguments = parser.parse_args()
    runs = Runs(arguments.output.resolve(), arguments.tokenizer_steps, arguments.steps)
    pool = ThreadPoolExecutor(arguments.at_once)
    try:
        scores_of = {
            name: [pool.submit(runs.scores, CHOICES[name], seed) for seed in range(arguments.seeds)]
            for name in arguments.only
        }
        print("| choice | IoU of the tokenizer | cIoU of the LMM, soft | hard |\n|---|---|---|---|", flush=True)
        for name, futures in scores_of.items():
            scores = [future.result() for future in futures]
            columns = [[score[key] for score in scores] for key in SCORES]
            cells = [f"{statistics.mean(c):.3f} ({', '.join(f'{value:.3f}' for value in c)})" for c in columns]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after a run that failed, no further one begins


class Runs:
    """The runs in a folder: data, tokenizers, LMMs and their scores."""

    def __init__(self, folder: Path, tokenizer_steps: int, steps: int):
        self.folder = folder
        self.tokenizer_steps = tokenizer_steps
        self.steps = steps
        self.locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # of tokenizers
        self.drawing = threading.Lock()  # the generator of random weights is the process's
        self.masks, self.train, self.held_out = folder / "masks.jsonl", folder / "train", folder / "held_out"
        if not (folder / "lmm").is_dir():
            write_mask_rows(self.masks, TRAIN_MASKS, TRAIN_SEED)
            write_rows(self.train, TRAIN_SCENES, TRAIN_SEED, turns=TURNS)
            write_rows(self.held_out, HELD_OUT_SCENES, HELD_OUT_SEED)
            texts = [turn["content"] for scene in generate_scenes(500, TEXT_SEED) for turn in scene.messages]
            build_tiny_internvl(folder / "lmm", texts, "demo")

    def scores(self, choice: Choice, seed: int) -> dict[str, float]:
        """IoU of the tokenizer, and cIoU of the LMM by decoding."""
        parts = [f"{key}={value}" for key, value in (choice.tokenizer | choice.flags).items()]
        folder = self.folder / "_".join([*parts, f"seed={seed}"])
        done = folder / "scores.json"
        if not done.is_file():
            tokenizer = self._tokenizer(choice, seed)
            flags = {"model": self.folder / "lmm", "mask_tokenizer": tokenizer, **STAGE_TWO, **choice.flags}
            checkpoint = self._train(2, self.train / "rows.jsonl", folder, self.steps, seed, **flags)
            scores = {decoding: self._ciou(checkpoint, folder, decoding) for decoding in ("soft", "hard")}
            held_out = generate_masks(HELD_OUT_MASKS, HELD_OUT_SEED)
            *_, full = reconstruction_scores(MaskTokenizer.from_pretrained(tokenizer), held_out).values()
            done.write_text(json.dumps({"IoU": full["gIoU"], **scores}))
        return json.loads(done.read_text())

    def _tokenizer(self, choice: Choice, seed: int) -> Path:
        parts = [f"{key}={value}" for key, value in choice.tokenizer.items()]
        folder = self.folder / "_".join(["tokenizer", *parts, f"seed={seed}"])
        checkpoint = folder / f"checkpoint-{self.tokenizer_steps}"
        with self.locks[folder]:
            if not checkpoint.is_dir():
                with self.drawing:
                    torch.manual_seed(seed)
                    build_mask_tokenizer("tiny", **choice.tokenizer).save_pretrained(folder / "untrained")
                flags = {"model": folder / "untrained", "continuous_warmup_steps": self.tokenizer_steps // 4}
                self._train(1, self.masks, folder, self.tokenizer_steps, seed, **flags)
        return checkpoint

    def _train(self, stage: int, rows: Path, output: Path, steps: int, seed: int, **flags: object) -> Path:
        """A checkpoint after `steps` of a stage."""
        flags |= {"dataset": rows, "output_dir": output, "max_steps": steps, "save_steps": steps, "seed": seed}
        flags |= {"use_cpu": not torch.cuda.is_available(), "eval_strategy": "no"}
        swift("sft", config_path(f"stage{stage}_tiny_full"), **flags)
        return output / f"checkpoint-{steps}"

    def _ciou(self, checkpoint: Path, folder: Path, decoding: str) -> float:
        result = folder / f"{decoding}.jsonl"
        result.unlink(missing_ok=True)  # ms-swift appends
        options = {"model": checkpoint, "mask_decoding": decoding, "val_dataset": self.held_out / "rows.jsonl"}
        options |= {"max_batch_size": 64, "max_new_tokens": 128, "temperature": 0, "stream": "false"}
        swift("infer", "--plugin", "himtok", result_path=result, **options)
        return score_results(result, boundary=False)["cIoU"]


def swift(*words: object, **options: object) -> None:
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "swift.cli.main", *map(str, [*words, *flags])]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])


if __name__ == "__main__":
    main()
