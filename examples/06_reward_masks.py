"""Reinforcement learning on masks: GRPO on generated scenes, mean reward and held-out cIoU before and after.

    python examples/06_reward_masks.py CHECKPOINT ROWS HELD_OUT [--output DIR] [--steps 60] [--seeds 3]

CHECKPOINT: a half-trained one, say stage 2 of `himtok demo --train`; ROWS, HELD_OUT: rows.jsonl of its scenes. The
reward is the IoU of what the sampled codes decode to, with a share for coarse prefixes, beside legal text, the right
number of masks and no mask where nothing is meant. Runs on the CPU; needs `pip install himtok_plugin[rl]`.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from himtok_plugin.evaluation.scoring import score_results

REWARDS = ("mask_iou", "mask_format", "mask_count", "no_target")
AVERAGED = 5  # steps whose rewards are averaged at either end


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
    before = held_out_ciou(arguments, arguments.checkpoint, arguments.output / "before.jsonl")
    print("| seed | reward, first steps | reward, last steps | cIoU before | cIoU after |")
    print("|---|---|---|---|---|")
    runs = [train(arguments, seed) for seed in range(arguments.seeds)]
    for seed, (first, last, after) in enumerate(runs):
        print(f"| {seed} | {first:.3f} | {last:.3f} | {before:.3f} | {after:.3f} |")
    means = [statistics.mean(column) for column in zip(*runs, strict=True)]
    print(f"| mean | {means[0]:.3f} | {means[1]:.3f} | {before:.3f} | {means[2]:.3f} |")


def train(arguments, seed: int) -> tuple[float, float, float]:
    """Mean reward of the first and of the last steps, and the held-out cIoU at the end."""
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
        "fp16": "false",  # ms-swift takes float32 for half precision otherwise
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
    swift("rlhf", *flags, **options)
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    rewards = [entry["reward"] for entry in entries if "reward" in entry]
    after = held_out_ciou(arguments, output / f"checkpoint-{arguments.steps}", output / "held_out.jsonl")
    return statistics.mean(rewards[:AVERAGED]), statistics.mean(rewards[-AVERAGED:]), after


def held_out_ciou(arguments, checkpoint: Path, result: Path) -> float:
    result.unlink(missing_ok=True)  # ms-swift appends
    result.parent.mkdir(parents=True, exist_ok=True)
    options = {"max_batch_size": 64, "max_new_tokens": 64, "temperature": 0, "stream": "false"}
    swift("infer", model=checkpoint, val_dataset=arguments.held_out, result_path=result, **options)
    return score_results(result, boundary=False)["cIoU"]


def swift(verb: str, *words: object, **options: object) -> None:
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [Path(sys.executable).with_name("swift"), verb, "--plugin", "himtok", *words, *flags]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
