"""Compare how the new embedding rows begin: the old rows' mean plus noise, or plus the code's place in the codebook.

    python examples/05_compare_row_starts.py DEMO [--output DIR] [--steps 300] [--seeds 3]

DEMO: the folder that `himtok demo` wrote; its untrained LMM, mask tokenizer and scenes are used. Every start and every
seed trains on the next token, as in stage 3, and the loss is printed as it falls.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from himtok_plugin.resources import config_path

STARTS = ("noise", "codebook")
POINTS = 6  # columns of the table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--output", type=Path, default=Path("row_starts"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    every = max(arguments.steps // POINTS, 1)
    curves = {}
    for seed in range(arguments.seeds):
        for start in STARTS:
            curves[start, seed] = train(arguments, start, seed, every)
    steps = [step for step, _ in next(iter(curves.values()))]
    print("| start | seed | " + " | ".join(f"step {step}" for step in steps) + " |")
    print("|---|---|" + "---|" * len(steps))
    for start in STARTS:
        own = [[loss for _, loss in curve] for (name, _), curve in curves.items() if name == start]
        for seed, losses in enumerate(own):
            print(f"| {start} | {seed} | " + " | ".join(f"{loss:.3f}" for loss in losses) + " |")
        means = [sum(column) / len(column) for column in zip(*own, strict=True)]
        print(f"| {start} | mean | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


def train(arguments, start: str, seed: int, every: int) -> list[tuple[int, float]]:
    """(step, mean next-token loss since the one before) of one run."""
    demo, output = arguments.demo, arguments.output / f"{start}_{seed}"
    (tokenizer,) = (demo / "stage1").glob("checkpoint-*")
    log = output / "logging.jsonl"
    log.unlink(missing_ok=True)
    options = {
        "model": demo / "lmm",
        "mask_tokenizer": tokenizer,
        "dataset": demo / "train" / "rows.jsonl",
        "output_dir": output,
        "mask_rows_init": start,
        "seed": seed,
        "max_steps": arguments.steps,
        "logging_steps": every,
        "logging_first_step": "false",
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    command = [sys.executable, "-m", "swift.cli.main", "sft", str(config_path("stage3_tiny_full"))]
    done = subprocess.run(
        command + [str(part) for name, value in options.items() for part in (f"--{name}", value)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    logged = [entry for entry in entries if "loss_next_token" in entry]
    return [(int(entry["global_step/max_steps"].split("/")[0]), entry["loss_next_token"]) for entry in logged]


if __name__ == "__main__":
    main()
