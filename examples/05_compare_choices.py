"""Compare design choices of the method, trained with equal budgets on the same scenes, with several seeds each.

    python examples/05_compare_choices.py [--output DIR] [--only CHOICE …] [--steps 400] [--seeds 3] [--at_once 1]

Shows what the losses, the order of the latents (causal or the released layout), 8, 16 or 32 tokens, and the
initialization of the mask tokens' embeddings contribute. Takes several hours on 2 cores, about a quarter of an hour per
choice and seed; on a GPU, --at_once 6 shortens it.

A run is a stage 1 (`stage1_tiny_full`) and a stage 2 (`stage2_tiny_full`) of a fixed number of steps, on the GPU if
there is one, evaluated with soft and with hard decoding. Finished runs are reused, so the table can be made in steps.
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
# Flags of stage 2 in all runs. They replace those of the demo's config, which is tuned for a few minutes.
STAGE_TWO = {
    "mask_loss_weight": 1.0,
    "hierarchical_loss_weight": 1.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.04,
}


@dataclass(frozen=True)
class Choice:
    """Differences from the baseline: fields of the mask tokenizer's configuration, and flags of stage 2."""

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
    parser.add_argument(
        "--at_once", type=int, default=1, help="number of runs in parallel; several make better use of a GPU"
    )
    arguments = parser.parse_args()
    runs = Runs(arguments.output.resolve(), arguments.tokenizer_steps, arguments.steps)
    pool = ThreadPoolExecutor(arguments.at_once)
    try:
        scores_of = {
            name: [pool.submit(runs.compute_scores, CHOICES[name], seed) for seed in range(arguments.seeds)]
            for name in arguments.only
        }
        print("| choice | IoU of the tokenizer | cIoU of the LMM, soft | hard |\n|---|---|---|---|", flush=True)
        for name, futures in scores_of.items():
            scores = [future.result() for future in futures]
            columns = [[score[key] for score in scores] for key in SCORES]
            cells = [f"{statistics.mean(c):.3f} ({', '.join(f'{value:.3f}' for value in c)})" for c in columns]
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after a failed run, no other one starts


class Runs:
    """The runs in one folder: data, tokenizers, LMMs and their scores."""

    def __init__(self, folder: Path, tokenizer_steps: int, steps: int):
        self.folder = folder
        self.tokenizer_steps = tokenizer_steps
        self.steps = steps
        self.locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)  # by folder of a tokenizer
        self.seed_lock = threading.Lock()  # torch's random generator is shared by all threads
        self.masks, self.train, self.held_out = folder / "masks.jsonl", folder / "train", folder / "held_out"
        if not (folder / "lmm").is_dir():
            write_mask_rows(self.masks, TRAIN_MASKS, TRAIN_SEED)
            write_rows(self.train, TRAIN_SCENES, TRAIN_SEED, turns=TURNS)
            write_rows(self.held_out, HELD_OUT_SCENES, HELD_OUT_SEED)
            texts = [turn["content"] for scene in generate_scenes(500, TEXT_SEED) for turn in scene.messages]
            build_tiny_internvl(folder / "lmm", texts, "demo")

    def compute_scores(self, choice: Choice, seed: int) -> dict[str, float]:
        """Train and evaluate one run, unless it is finished; return IoU of the tokenizer and cIoU of the LMM."""
        parts = [f"{key}={value}" for key, value in (choice.tokenizer | choice.flags).items()]
        folder = self.folder / "_".join([*parts, f"seed={seed}"])
        done = folder / "scores.json"
        if not done.is_file():
            tokenizer = self._train_tokenizer(choice, seed)
            flags = {"model": self.folder / "lmm", "mask_tokenizer": tokenizer, **STAGE_TWO, **choice.flags}
            checkpoint = self._run_stage(2, self.train / "rows.jsonl", folder, self.steps, seed, **flags)
            scores = {decoding: self._measure_ciou(checkpoint, folder, decoding) for decoding in ("soft", "hard")}
            held_out = generate_masks(HELD_OUT_MASKS, HELD_OUT_SEED)
            *_, full = reconstruction_scores(MaskTokenizer.from_pretrained(tokenizer), held_out).values()
            done.write_text(json.dumps({"IoU": full["gIoU"], **scores}))
        return json.loads(done.read_text())

    def _train_tokenizer(self, choice: Choice, seed: int) -> Path:
        parts = [f"{key}={value}" for key, value in choice.tokenizer.items()]
        folder = self.folder / "_".join(["tokenizer", *parts, f"seed={seed}"])
        checkpoint = folder / f"checkpoint-{self.tokenizer_steps}"
        with self.locks[folder]:
            if not checkpoint.is_dir():
                with self.seed_lock:
                    torch.manual_seed(seed)
                    build_mask_tokenizer("tiny", **choice.tokenizer).save_pretrained(folder / "untrained")
                flags = {"model": folder / "untrained", "continuous_warmup_steps": self.tokenizer_steps // 4}
                self._run_stage(1, self.masks, folder, self.tokenizer_steps, seed, **flags)
        return checkpoint

    def _run_stage(self, stage: int, rows: Path, output: Path, steps: int, seed: int, **flags: object) -> Path:
        """Train `steps` steps of a stage; return the checkpoint."""
        flags |= {"dataset": rows, "output_dir": output, "max_steps": steps, "save_steps": steps, "seed": seed}
        flags |= {"use_cpu": not torch.cuda.is_available(), "eval_strategy": "no"}
        run_swift("sft", config_path(f"stage{stage}_tiny_full"), **flags)
        return output / f"checkpoint-{steps}"

    def _measure_ciou(self, checkpoint: Path, folder: Path, decoding: str) -> float:
        result = folder / f"{decoding}.jsonl"
        result.unlink(missing_ok=True)  # ms-swift would append to it
        options = {"model": checkpoint, "mask_decoding": decoding, "val_dataset": self.held_out / "rows.jsonl"}
        options |= {"max_batch_size": 64, "max_new_tokens": 128, "temperature": 0, "stream": "false"}
        run_swift("infer", "--plugin", "himtok", result_path=result, **options)
        return score_results(result, boundary=False)["cIoU"]


def run_swift(*arguments: object, **options: object) -> None:
    """Run an ms-swift command; exit with its errors if it fails."""
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "swift.cli.main", *map(str, [*arguments, *flags])]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])


if __name__ == "__main__":
    main()
