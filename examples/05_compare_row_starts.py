"""Compare how the new embedding rows begin: the old rows' mean plus noise, or plus the code's place in the codebook.

    python examples/05_compare_row_starts.py DEMO [--output DIR] [--steps 300] [--seeds 3]

DEMO: the folder that `himtok demo` wrote; its untrained LMM, mask tokenizer and scenes are used. Every start and every
seed trains on the next token, as in stage 3. Printed are the loss as it falls and the cIoU on held-out scenes: the two
need not agree, since most tokens are easy without looking at the image.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from himtok_plugin.resources import config_path
from himtok_plugin.scoring import score_rows

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
    curves = {
        (start, seed): train(arguments, start, seed, every) for seed in range(arguments.seeds) for start in STARTS
    }
    columns = list(next(iter(curves.values())))
    print("| start | seed | " + " | ".join(columns) + " |")
    print("|---|---|" + "---|" * len(columns))
    for start in STARTS:
        own = [list(curve.values()) for (name, _), curve in curves.items() if name == start]
        means = [sum(column) / len(column) for column in zip(*own, strict=True)]
        for name, values in [*enumerate(own), ("mean", means)]:
            print(f"| {start} | {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


def train(arguments, start: str, seed: int, every: int) -> dict[str, float]:
    """What one run has to show: the mean next-token loss of every part of it, and the cIoU at its end."""
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
        "save_steps": arguments.steps,
    }
    swift("sft", config_path("stage3_tiny_full"), **options)
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    losses = {
        f"loss to step {entry['global_step/max_steps'].split('/')[0]}": entry["loss_next_token"]
        for entry in entries
        if "loss_next_token" in entry
    }
    result = output / "held_out.jsonl"
    result.unlink(missing_ok=True)  # ms-swift appends
    options = {"max_batch_size": 64, "max_new_tokens": 64, "temperature": 0, "stream": "false"}
    checkpoint = output / f"checkpoint-{arguments.steps}"
    held_out = demo / "held_out" / "rows.jsonl"
    swift("infer", "--plugin", "himtok", model=checkpoint, val_dataset=held_out, result_path=result, **options)
    return {**losses, "cIoU": score_rows(result)["cIoU"]}


def swift(*words: object, **options: object) -> None:
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [sys.executable, "-m", "swift.cli.main", *map(str, [*words, *flags])]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])


if __name__ == "__main__":
    main()
