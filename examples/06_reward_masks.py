"""Train an LMM on mask rewards with GRPO, and compare its rewards and held-out cIoU before and after.

    python examples/06_reward_masks.py CHECKPOINT ROWS HELD_OUT [--output DIR] [--steps 60] [--seeds 3]

Shows how the four reward functions of the plugin are used: IoU of the decoded mask (with a share for coarse prefixes),
legal mask text, the right number of masks, and no mask for an object that is not in the image. Takes
hours on 2 cores, up to two minutes per step; --steps and --seeds shorten it.

CHECKPOINT is one that can still improve, such as stage 2 of `himtok demo --train`. ROWS and HELD_OUT are rows.jsonl
of its scenes. Runs on the CPU; needs `pip install himtok_plugin[rl]`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from himtok_plugin.evaluation.scoring import score_results

REWARDS = ("mask_iou", "mask_format", "mask_count", "no_target")
AVERAGED_STEPS = 5  # number of first and of last steps whose rewards are averaged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--output", type=Path, default=Path("reward_masks"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--prompts", type=int, default=8, help="questions per step")
    parser.add_argument("--samples", type=int, default=8, help="answers per question")
    arguments = parser.parse_args()
    before = measure_held_out_ciou(arguments, arguments.checkpoint, arguments.output / "before.jsonl")
    print("| seed | reward, first steps | reward, last steps | cIoU before | cIoU after |")
    print("|---|---|---|---|---|")
    runs = [train_with_rewards(arguments, seed) for seed in range(arguments.seeds)]
    for seed, (first, last, after) in enumerate(runs):
        print(f"| {seed} | {first:.3f} | {last:.3f} | {before:.3f} | {after:.3f} |")
    means = [statistics.mean(column) for column in zip(*runs, strict=True)]
    print(f"| mean | {means[0]:.3f} | {means[1]:.3f} | {before:.3f} | {means[2]:.3f} |")


def train_with_rewards(arguments: argparse.Namespace, seed: int) -> tuple[float, float, float]:
    """Train with GRPO; return the mean rewards of the first and of the last steps, and the held-out cIoU afterwards."""
    output = arguments.output / f"seed{seed}"
    log = output / "logging.jsonl"
    log.unlink(missing_ok=True)
    flags = ["--rlhf_type", "grpo", "--reward_funcs", *REWARDS, "--add_version", "false", "--check_model", "false"]
    options = {
        "model": arguments.checkpoint,
        "dataset": arguments.rows,
        "output_dir": output,
        "tuner_type": "full",
        "torch_dtype": "float32",
        "fp16": "false",  # otherwise ms-swift turns it on for torch_dtype float32
        "freeze_vit": "false",
        "freeze_aligner": "false",
        "use_vllm": "false",
        "num_generations": arguments.samples,
        "per_device_train_batch_size": arguments.prompts * arguments.samples,
        "max_completion_length": 48,
        "temperature": 1.0,
        "beta": 0.0,  # no reference model
        "learning_rate": arguments.learning_rate,
        "lr_scheduler_type": "constant",
        "seed": seed,
        "max_steps": arguments.steps,
        "save_steps": arguments.steps,
        "logging_steps": 1,
        "eval_strategy": "no",
        "split_dataset_ratio": 0,
        "report_to": "none",
    }
    run_swift("rlhf", *flags, **options)
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    rewards = [entry["reward"] for entry in entries if "reward" in entry]
    after = measure_held_out_ciou(arguments, output / f"checkpoint-{arguments.steps}", output / "held_out.jsonl")
    return statistics.mean(rewards[:AVERAGED_STEPS]), statistics.mean(rewards[-AVERAGED_STEPS:]), after


def measure_held_out_ciou(arguments: argparse.Namespace, checkpoint: Path, result: Path) -> float:
    """Segment the held-out scenes with a checkpoint and return the cIoU."""
    result.unlink(missing_ok=True)  # ms-swift would append to it
    result.parent.mkdir(parents=True, exist_ok=True)
    options = {"max_batch_size": 64, "max_new_tokens": 64, "temperature": 0, "stream": "false"}
    run_swift("infer", model=checkpoint, val_dataset=arguments.held_out, result_path=result, **options)
    return score_results(result, boundary=False)["cIoU"]


def run_swift(verb: str, *arguments: object, **options: object) -> None:
    """Run `swift VERB` with the plugin."""
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [Path(sys.executable).with_name("swift"), verb, "--plugin", "himtok", *arguments, *flags]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
